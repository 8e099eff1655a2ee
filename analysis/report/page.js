"use strict";
// The theme, and what moves the panels; all else on this page is Bokeh's.
(() => {
  const root = document.documentElement, all = (query) => [...document.querySelectorAll(query)];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let plots = [], steps = null, waiting = 0;

  // Colours that are dark on dark have a lighter one there.
  const LIGHTER = { "#0072B2": "#4A94F0", "#56B4E9": "#B0E0FF", "#000000": "#FFFFFF", "#D55E00": "#F0803C" };

  function theme(name) {
    root.dataset.theme = name;
    const shown = (colour) => name === "dark" ? LIGHTER[colour] || colour : colour;
    for (const key of all("[data-colour]")) key.style.color = shown(key.dataset.colour);
    for (const { colours, figure } of plots) {
      for (const [glyph, property, colour] of colours) glyph[property] = { value: shown(colour) };
      // The numbers of a colour bar do not take their colour from the style of the page.
      for (const bar of figure.right) if (bar.type === "ColorBar") {
        bar.major_label_text_color = getComputedStyle(root).getPropertyValue("--ink").trim();
      }
      figure.change.emit();
    }
  }

  // The colours of what is drawn, as they are on white.
  function coloured(figure) {
    return figure.renderers.flatMap(({ glyph }) => ["line_color", "fill_color"]
      .map((name) => [glyph, name, glyph.properties[name]?.get_value()?.value])
      .filter(([, , colour]) => LIGHTER[colour]));
  }

  root.dataset.theme = dark.matches ? "dark" : "light";
  dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));
  document.getElementById("theme").addEventListener("click", () =>
    theme(root.dataset.theme === "dark" ? "light" : "dark"));

  // First place in increasing numbers that is not below a limit.
  function place(numbers, limit) {
    let [low, high] = [0, numbers.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (numbers[middle] < limit) low = middle + 1; else high = middle;
    }
    return low;
  }

  function within(renderer, range) {
    const data = renderer.data_source.data, { x, y } = renderer.glyph;
    const xs = data.get ? data.get(x.field) : data[x.field];
    const ys = data.get ? data.get(y.field) : data[y.field];
    return { xs, ys, from: Math.max(place(xs, range.start) - 1, 0),
             to: Math.min(place(xs, range.end) + 1, xs.length) };
  }

  // Heights of what is seen; those of the whole run leave out the few that the notes name.
  function fit({ figure, lines, log, home }) {
    const [from, to] = steps.tags[0];
    let [low, high] = home;
    if (steps.start > from || steps.end < to) {
      [low, high] = [Infinity, -Infinity];
      for (const line of lines) {
        if (!line.visible) continue;
        const { ys, xs, from: a, to: b } = within(line, steps);
        for (let i = a; i < b; i++) {
          if (xs[i] < steps.start || xs[i] > steps.end) continue;
          const y = ys[i];
          if (!Number.isFinite(y) || Math.abs(y) >= 1e150 || (log && y <= 0)) continue;
          if (y < low) low = y;
          if (y > high) high = y;
        }
      }
      if (low > high) return;
      if (log) {
        const part = (high / low) ** 0.06 * (high > low ? 1 : 1.1);
        [low, high] = [low / part, high * part];
      } else {
        const part = 0.06 * (high - low) || 0.1 * Math.abs(low) || 0.5;
        [low, high] = [low - part, high + part];
      }
    }
    figure.y_range.setv({ start: low, end: high });
  }

  // Points that fall into one pixel are drawn once; far apart they are larger and joined.
  function thin({ figure, lines, clouds, log }) {
    const width = Math.round(figure.inner_width || 1000), height = Math.round(figure.inner_height || 150);
    const scale = log ? Math.log : (y) => y, x_scale = figure.x_range;
    const [low, high] = [scale(figure.y_range.start), scale(figure.y_range.end)];
    for (const cloud of clouds) {
      const { xs, ys, from, to } = within(cloud, x_scale), seen = new Uint8Array(width * height), kept = [];
      for (let i = from; i < to; i++) {
        const column = Math.floor((xs[i] - x_scale.start) / (x_scale.end - x_scale.start) * width);
        const row = Math.floor((scale(ys[i]) - low) / (high - low) * height);
        if (!(column >= 0 && column < width && row >= 0 && row < height)) continue;
        const cell = column * height + row;
        if (!seen[cell]) { seen[cell] = 1; kept.push(i); }
      }
      const apart = width / Math.max(to - from, 1);
      cloud.glyph.size = { value: Math.min(Math.max(2.4 * Math.sqrt(apart), 2), 6) };
      const line = lines.find((other) => other.name === cloud.name);
      if (cloud.glyph.tags.includes("points")) {
        line.glyph.line_alpha = { value: apart > 3 ? 0.5 : apart > 0.5 ? 0.2 : 0 };
      }
      cloud.view.filter.indices = kept;
    }
  }

  function told() {
    const [first, last] = steps.tags[1];
    document.getElementById("first").value = Math.max(Math.ceil(steps.start), first);
    document.getElementById("last").value = Math.min(Math.floor(steps.end), last);
  }

  function moved() {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => {
      told();
      for (const plot of plots) if (plot.of_steps) { fit(plot); thin(plot); }
    });
  }

  function show(first, last) {
    if (!Number.isFinite(first) || !Number.isFinite(last)) return told();
    const [from, to] = steps.tags[0], least = 4;
    let width = Math.min(Math.max(last - first, least), to - from);
    first = Math.min(Math.max(first, from), to - width);
    steps.setv({ start: first, end: first + width });
  }

  function act(name, button) {
    const { start, end } = steps, width = end - start, middle = (start + end) / 2;
    if (name === "home") show(...steps.tags[0]);
    if (name === "left") show(start - width / 2, end - width / 2);
    if (name === "right") show(start + width / 2, end + width / 2);
    if (name === "in") show(middle - width / 4, middle + width / 4);
    if (name === "out") show(middle - width, middle + width);
    if (name === "drag") {
      const move = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", move);
      button.textContent = move ? "drag: move" : "drag: zoom";
      dragging(move ? "PanTool" : "BoxZoomTool");
    }
  }

  function whole({ figure, home, across }) {
    figure.x_range.setv({ start: across[0], end: across[1] });
    figure.y_range.setv({ start: home[0], end: home[1] });
  }

  function dragging(kind) {
    for (const { figure } of plots) {
      figure.toolbar.active_drag = figure.toolbar.tools.find((tool) => tool.type === kind) || null;
    }
  }

  function chosen(row) {
    for (const other of all("tr[aria-current]")) other.removeAttribute("aria-current");
    row.setAttribute("aria-current", "true");
    show(Number(row.dataset.first), Number(row.dataset.last));
    const { top, bottom } = document.getElementById("panels").getBoundingClientRect();
    if (top > innerHeight * 0.7 || bottom < 0) {
      const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
      document.getElementById("panels").scrollIntoView({ behavior: still ? "auto" : "smooth" });
    }
  }

  function listen() {
    for (const row of all("tr[data-first]")) {
      row.addEventListener("click", () => chosen(row));
      row.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); chosen(row); }
      });
    }
    for (const button of all("[data-do]")) button.addEventListener("click", () => act(button.dataset.do, button));
    for (const key of all(".key")) key.addEventListener("click", () => {
      const shown = key.getAttribute("aria-pressed") !== "true", numbers = key.dataset.series.split(" ");
      key.setAttribute("aria-pressed", shown);
      const plot = plots.find(({ figure }) => figure.id === key.dataset.panel);
      for (const r of plot.figure.renderers) if (numbers.includes((r.name || "").slice(7))) r.visible = shown;
      if (plot.of_steps) moved();
    });
    for (const plot of plots) {
      plot.view.el.addEventListener("dblclick", () => plot.of_steps ? act("home") : whole(plot));
      if (plot.of_steps) continue;
      for (const range of [plot.figure.x_range, plot.figure.y_range]) range.change.connect(() => thin(plot));
    }
    if (!steps) return;
    for (const id of ["first", "last"]) document.getElementById(id).addEventListener("change", () =>
      show(...["first", "last"].map((one) => Number(document.getElementById(one).value.replaceAll(",", "")))));
    for (const name of ["start", "end"]) steps.properties[name].change.connect(moved);
    const first = plots.find((plot) => plot.of_steps);
    first.figure.properties.inner_width.change.connect(moved);
    told();
  }

  // Of a study: the runs of what was chosen, and their configurations.
  function studied() {
    const content = document.getElementById("study");
    if (!content) return;
    const { common, keys, runs } = JSON.parse(content.textContent), box = document.getElementById("runs");
    const made = (kind, text) => Object.assign(document.createElement(kind), { textContent: text });

    function entry(number, open) {
      const { own, without, status, message, numbers } = runs[number], config = { ...common, ...own };
      for (const key of without) delete config[key];
      const one = document.createElement("details"), list = document.createElement("dl");
      const told = keys.map((key) => `${key} ${config[key]}`).join(", ");
      one.append(made("summary", `run ${number}: ${status}${message ? ` (${message})` : ""}; ${told}`), list);
      for (const [key, value] of [...Object.entries(numbers).filter(([, value]) => value !== null), ...Object.entries(config)]) {
        list.append(made("dt", key), made("dd", value));
      }
      one.open = open;
      return one;
    }

    function show_runs(numbers) {
      const there = numbers.filter((number) => number in runs);
      box.replaceChildren(...there.map((number) => entry(number, there.length === 1)));
    }

    document.getElementById("run").addEventListener("change", ({ target }) => show_runs([Number(target.value)]));
    for (const { figure } of plots) for (const { data_source } of figure.renderers) {
      const column = data_source.get_column("runs");
      if (column) data_source.selected.change.connect(() => {
        const [first] = data_source.selected.indices;
        if (first !== undefined && column[first]) show_runs(column[first].split(" ").map(Number));
      });
    }
  }

  function ready() {
    const found = window.Bokeh && Bokeh.documents[0];
    if (!document.querySelector("figure.panel")) return done();
    if (!found || !found.is_idle) return void setTimeout(ready, 20);
    plots = found.roots().map((figure) => ({
      figure, view: Bokeh.index.get ? Bokeh.index.get(figure) : Bokeh.index[figure.id],
      of_steps: figure.tags[0].steps, home: figure.tags[0].home, across: figure.tags[0].across,
      colours: coloured(figure),
      log: figure.y_scale.type === "LogScale",
      lines: figure.renderers.filter((r) => r.name && r.glyph.type === "Line"),
      clouds: figure.renderers.filter((r) => r.glyph.type === "Scatter" && !r.glyph.tags.includes("marks")),
    }));
    steps = found.get_model_by_name("steps");
    if (innerWidth < 600) for (const { figure } of plots) figure.below[0].ticker.desired_num_ticks = 4;
    // Fingers scroll the page; buttons and rows zoom.
    if (matchMedia("(pointer: coarse)").matches) dragging("none");
    done();
  }

  function done() {
    listen();
    studied();
    if (root.dataset.theme === "dark") theme("dark");
    root.dataset.ready = Math.round(performance.now());
    window.dispatchEvent(new Event("report-ready"));
  }
  ready();
})();
