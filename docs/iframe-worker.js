// Makes the search of this site work from the disk: browsers start no worker from file://, so the worker's
// script runs in a hidden frame instead. On a server nothing changes.
(() => {
  if (location.protocol !== "file:") return;

  class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = this.onerror = null;
      this._frame = document.createElement("iframe");
      this._frame.hidden = true;
      document.body.append(this._frame);
      const inside = this._frame.contentWindow;
      // What a worker has and a frame lacks, or has in another form.
      inside.postMessage = (data) => this._tell(new MessageEvent("message", { data }));
      inside.importScripts = (...urls) => urls.reduce(
        (before, each) => before.then(() => this._load(each)), Promise.resolve());
      this._ready = this._load(url);
    }

    postMessage(data) {
      const inside = this._frame.contentWindow;
      this._ready.then(() => inside.dispatchEvent(new inside.MessageEvent("message", { data })));
    }

    terminate() {
      this._frame.remove();
    }

    _load(url) {
      return new Promise((resolve, reject) => {
        const script = this._frame.contentDocument.createElement("script");
        script.src = new URL(url, location.href).href;
        script.onload = resolve;
        script.onerror = () => reject(new Error(`cannot load ${url}`));
        this._frame.contentDocument.body.append(script);
      });
    }

    _tell(event) {
      this.dispatchEvent(event);
      if (this.onmessage) this.onmessage(event);
    }
  }

  window.IFrameWorker = window.Worker = IFrameWorker;
})();
