"""Why a run did what it did at one step: what is known of it, and a paragraph that says so."""
