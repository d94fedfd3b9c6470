"use strict";
/* Draws the charts when they come into view, in the colours of the theme; filters and picks trials; copies text. */
(() => {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("trial_data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const fine = matchMedia("(pointer: fine)").matches;
  const drawn = new Set(); // charts that were drawn
  let choice = "system", printing = false;
  try { choice = localStorage.getItem("voxtune-theme") || "system"; } catch { /* a browser that stores nothing */ }

  // ---- theme -------------------------------------------------------------------------------------------------
  const button = document.getElementById("theme");
  const applyTheme = () => {
    const isDark = !printing && (choice === "dark" || (choice === "system" && dark.matches));
    root.dataset.theme = isDark ? "dark" : "light";
    button.textContent = `Theme: ${choice === "system" ? "as the system" : choice}`;
    document.dispatchEvent(new CustomEvent("themechange"));
  };
  button.addEventListener("click", () => {
    choice = { system: "light", light: "dark", dark: "system" }[choice] || "system";
    try { localStorage.setItem("voxtune-theme", choice); } catch { /* not kept */ }
    applyTheme();
    redraw();
  });
  dark.addEventListener("change", () => { applyTheme(); redraw(); });

  // ---- charts ------------------------------------------------------------------------------------------------
  const coloured = (value, style) => {
    if (typeof value === "string") {
      return value.startsWith("var(") ? style.getPropertyValue(value.slice(4, -1)).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => coloured(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, style)]));
    }
    return value;
  };
  const escaped = (text) => String(text).replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
  const byNumber = new Map((data.trials || []).map((trial) => [trial.n, trial]));
  const recipeOf = (trial) => data.options
    .map((option, at) => (trial.r[at] < 0 ? null : [option.name, option.values[trial.r[at]]])).filter(Boolean);
  const hoverText = (number) => {
    const trial = byNumber.get(number);
    if (!trial) return `trial ${number}`;
    if (!trial.text) {
      const base = new Map(byNumber.has(data.default) ? recipeOf(byNumber.get(data.default)) : []);
      const lines = recipeOf(trial).filter(([name, value]) => base.get(name) !== value).map(([n, v]) => `${n} ${v}`);
      const head = `<b>trial ${number}</b> ${escaped(trial.s)}${number === data.winner ? ", winner" : ""}`;
      const needed = trial.needed ? [escaped(trial.needed)] : [];
      trial.text = [head, ...needed, ...(lines.length ? lines.map(escaped) : ["searched options as in the default recipe"])].join("<br>");
    }
    return trial.text;
  };
  const withRecipes = (trace) => {
    if (!trace.trials) return trace;
    const value = trace.type === "bar" ? "" : "<br>%{y}";
    return { ...trace, text: trace.trials.map(hoverText), textposition: "none", hovertemplate: `%{text}${value}<extra></extra>` };
  };
  const layoutOf = (layout, style) => {
    const ink = style.getPropertyValue("--fg").trim(), line = style.getPropertyValue("--line").trim();
    const axes = Object.fromEntries(Object.keys({ xaxis: 0, yaxis: 0, ...layout }).filter((k) => /^[xy]axis/.test(k))
      .map((k) => [k, { gridcolor: line, linecolor: line, zeroline: false, automargin: true, ...layout[k],
        title: { standoff: 6, font: { size: 12 }, ...(layout[k] || {}).title } }]));
    return { margin: { l: 52, r: 12, t: 26, b: 42 }, hovermode: "closest", dragmode: fine ? "zoom" : false,
      legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0, traceorder: "normal" },
      ...layout, ...axes, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
      hoverlabel: { align: "left", bgcolor: style.getPropertyValue("--bg").trim(), bordercolor: ink, font: { color: ink, size: 12 } } };
  };
  const draw = (figure) => {
    const spec = figure.id === "curves_chart" ? curves() : JSON.parse(figure.querySelector("script").textContent);
    const style = getComputedStyle(root), chart = figure.querySelector(".chart");
    const traces = coloured(spec.data, style).map(withRecipes);
    const config = { displaylogo: false, responsive: true, plotlyServerURL: "", // no button sends a chart away
      displayModeBar: fine && !figure.closest(".grid") ? "hover" : false, // in a grid they would be 50 stops of Tab
      modeBarButtonsToRemove: ["sendChartToCloud", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"] };
    Plotly.react(chart, traces, layoutOf(coloured(spec.layout || {}, style), style), config);
    if (figure.id === "curves_chart" && !drawn.has(figure)) chart.on("plotly_click", pickFromChart);
    drawn.add(figure);
  };
  const figures = [...document.querySelectorAll(".chart")].map((chart) => chart.closest("figure"));
  const redraw = () => drawn.forEach(draw);
  const watcher = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      watcher.unobserve(target);
      draw(target);
    }
  }, { rootMargin: "400px" });

  // ---- learning curves and the table of trials -----------------------------------------------------------------
  const filter = document.getElementById("trial_filter"), table = document.getElementById("trial_table");
  const picked = new Set();
  const STYLES = {
    complete: ["trained to the end", "--complete", "solid", 0.75], stopped: ["stopped early", "--stopped", "solid", 0.55],
    running: ["not ended", "--running", "dash", 0.9], failed: ["failed", "--failed", "dot", 0.9],
  };
  const chosenTrials = () => { // those that the filter lets through
    if (!filter) return data.trials;
    const form = new FormData(filter), groups = form.getAll("status"), option = form.get("option"), value = form.get("value");
    const at = data.options.findIndex((item) => item.name === option);
    const [low, high] = (value || "").split(":").map(Number); // of a range; of one value, its index
    const within = (index) => (high === undefined ? index === low : low <= data.options[at].values[index] && data.options[at].values[index] <= high);
    const suits = (trial) => !option || (trial.r[at] >= 0 && (!value || within(trial.r[at])));
    return data.trials.filter((trial) => groups.includes(trial.g) && suits(trial));
  };
  const lines = (trials) => {
    const x = [], y = [], numbers = [];
    for (const trial of trials) {
      x.push(...trial.e, null); y.push(...trial.v, null);
      numbers.push(...Array(trial.e.length + 1).fill(trial.n));
    }
    return { x, y, trials: numbers };
  };
  const curves = () => {
    const trials = chosenTrials().filter((trial) => trial.e.length), traces = [];
    const faded = picked.size ? 0.25 : 1;
    for (const [group, [name, colour, dash, opacity]] of Object.entries(STYLES)) {
      const members = trials.filter((trial) => trial.g === group);
      if (!members.length) continue;
      const lone = members.every((trial) => trial.e.length < 2);
      traces.push({ type: "scatter", mode: lone ? "lines+markers" : "lines", name, legendgroup: group, ...lines(members), opacity: opacity * faded,
        line: { color: `var(${colour})`, width: 1.2, dash } });
      if (group === "stopped") {
        traces.push({ type: "scatter", mode: "markers", legendgroup: group, showlegend: false, opacity: 0.8 * faded,
          x: members.map((t) => t.e.at(-1)), y: members.map((t) => t.v.at(-1)), trials: members.map((t) => t.n),
          marker: { symbol: "x-thin-open", size: 5, color: "var(--stopped)", line: { width: 1, color: "var(--stopped)" } } });
      }
    }
    for (const [number, name, colour, dash] of [[data.default, "default recipe", "--muted", "dash"], [data.winner, "winner", "--winner", "solid"]]) {
      const trial = byNumber.get(number);
      if (trial && trials.includes(trial)) {
        traces.push({ type: "scatter", mode: "lines", name, ...lines([trial]), line: { color: `var(${colour})`, width: 2.5, dash } });
      }
    }
    [...picked].map((n) => byNumber.get(n)).filter((t) => t && t.e.length).forEach((trial, at) => traces.push({
      type: "scatter", mode: "lines+markers", name: `trial ${trial.n}`, ...lines([trial]),
      marker: { symbol: ["circle", "square", "diamond", "triangle-up", "cross"][at % 5], size: 6 },
      line: { color: ["var(--accent)", "var(--failed)", "var(--complete)", "var(--winner)", "var(--stopped)"][at % 5], width: 2 } }));
    const shapes = data.rungs.map((epoch) => ({ type: "line", x0: epoch, x1: epoch, yref: "paper", y0: 0, y1: 1,
      layer: "below", line: { color: "var(--muted)", width: 1, dash: "dot" } }));
    return { data: traces, layout: { shapes, showlegend: true, xaxis: { title: { text: "epoch" }, range: [1 - 0.02 * data.epochs, 1.02 * data.epochs],
      ...(data.epochs <= 16 ? { dtick: 1 } : {}) },
      yaxis: { title: { text: data.score }, ...(trials.length ? {} : { range: [0, 1] }) } } };
  };
  const refreshTrials = () => {
    const visible = new Set(chosenTrials().map((trial) => trial.n));
    for (const row of table.tBodies[0].rows) {
      const number = Number(row.dataset.trial);
      row.hidden = !visible.has(number);
      row.classList.toggle("picked", picked.has(number));
      row.querySelector("input").checked = picked.has(number);
    }
    document.getElementById("trial_count").textContent = `${visible.size} of ${data.trials.length} trials`;
    compare();
    const figure = document.getElementById("curves_chart");
    if (drawn.has(figure)) draw(figure);
  };
  const pick = (number) => { if (!picked.delete(number)) picked.add(number); refreshTrials(); };
  const pickFromChart = (event) => {
    const point = event.points[0], number = point.data.trials && point.data.trials[point.pointIndex];
    if (number !== undefined) pick(number);
  };
  const compare = () => {
    const place = document.getElementById("picked");
    place.replaceChildren();
    if (!picked.size) return;
    const chosen = [...picked].map((n) => byNumber.get(n)), recipes = chosen.map((trial) => new Map(recipeOf(trial)));
    const grid = document.createElement("table");
    const add = (texts, isHead) => {
      const row = grid.insertRow();
      texts.forEach((text, at) => {
        const cell = document.createElement(isHead || at === 0 ? "th" : "td");
        if (cell.tagName === "TH") cell.scope = isHead ? "col" : "row";
        cell.textContent = text;
        row.append(cell);
      });
    };
    grid.createCaption().textContent = "Recipes of the trials picked: options in which they differ";
    add(["option", ...chosen.map((trial) => `trial ${trial.n}`)], true);
    for (const { name } of data.options) {
      const values = recipes.map((recipe) => recipe.get(name) ?? "inactive");
      if (new Set(values).size > 1 || values.length === 1) add([name, ...values], false);
    }
    const box = document.createElement("div");
    box.className = "scroll";
    box.tabIndex = 0;
    box.append(grid);
    place.append(box);
  };
  const sortBy = (column, head) => {
    const rows = [...table.tBodies[0].rows], ascending = head.getAttribute("aria-sort") === "descending";
    const key = (row) => { const text = row.cells[column].textContent.trim(), number = parseFloat(text.replaceAll(",", ""));
      return Number.isNaN(number) ? text : number; };
    rows.sort((a, b) => { const [x, y] = [key(a), key(b)], [nx, ny] = [typeof x === "number", typeof y === "number"];
      if (nx !== ny) return nx ? -1 : 1;
      return (ascending ? 1 : -1) * (nx ? x - y : String(x).localeCompare(y)); });
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    table.tBodies[0].append(...rows);
  };
  const MAX_VALUES = 8; // of a number, to choose from one by one
  const choicesOf = (option) => { // what one filters an option by: its values, or quarters of its trials
    const values = option.values.map((value, at) => new Option(value, at));
    if (values.some((item) => Number.isNaN(Number(item.text)))) return values;
    if (values.length <= MAX_VALUES) return values.sort((a, b) => a.text - b.text);
    const at = data.options.indexOf(option);
    const tried = data.trials.filter((trial) => trial.r[at] >= 0).map((trial) => option.values[trial.r[at]]).sort((a, b) => a - b);
    const ends = [...new Set([0, 0.25, 0.5, 0.75, 1].map((share) => tried[Math.round(share * (tried.length - 1))]))];
    return ends.slice(1).map((end, i) => new Option(`${ends[i]} to ${end}`, `${ends[i]}:${end}`));
  };
  const prepareTable = () => {
    for (const row of table.tBodies[0].rows) {
      const cell = row.cells[0], number = Number(cell.textContent), label = document.createElement("label");
      row.dataset.trial = number;
      const box = Object.assign(document.createElement("input"), { type: "checkbox" });
      box.addEventListener("change", () => pick(number));
      label.append(box, ` ${number}`);
      cell.replaceChildren(label);
    }
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const sort = Object.assign(document.createElement("button"), { type: "button", textContent: head.textContent });
      sort.addEventListener("click", () => sortBy(column, head));
      head.replaceChildren(sort);
    });
    filter.addEventListener("input", (event) => {
      if (event.target.name === "option") {
        const option = data.options.find((item) => item.name === event.target.value), select = filter.elements.value;
        select.disabled = !option;
        select.replaceChildren(new Option("any value", ""), ...(option ? choicesOf(option) : []));
      }
      refreshTrials();
    });
    filter.addEventListener("reset", () => setTimeout(() => { picked.clear(); filter.elements.value.disabled = true; refreshTrials(); }));
    filter.addEventListener("submit", (event) => event.preventDefault());
    refreshTrials();
  };

  // ---- the rest ------------------------------------------------------------------------------------------------
  for (const copy of document.querySelectorAll("button.copy")) {
    copy.addEventListener("click", async () => {
      const text = copy.parentElement.querySelector("code");
      try { await navigator.clipboard.writeText(text.textContent); } catch {
        getSelection().selectAllChildren(text); // a browser that lets no file copy: the text is selected instead
        document.execCommand("copy");
      }
      copy.textContent = "Copied";
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
  }
  const spy = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      const link = document.querySelector(`nav a[href="#${target.id}"]`);
      if (link) isIntersecting ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
    }
  }, { rootMargin: "-10% 0px -75% 0px" });
  document.querySelectorAll("section").forEach((section) => spy.observe(section));
  const preparePrint = () => {
    printing = true;
    applyTheme();
    document.querySelectorAll("details").forEach((item) => { item.dataset.wasOpen = item.open; item.open = true; });
    figures.forEach((figure) => { draw(figure); const chart = figure.querySelector(".chart");
      Plotly.relayout(chart, { width: Math.min(chart.clientWidth, 660) }); });
  };
  const endPrint = () => {
    printing = false;
    document.querySelectorAll("details").forEach((item) => { item.open = item.dataset.wasOpen === "true"; });
    applyTheme();
    redraw();
  };
  addEventListener("beforeprint", preparePrint);
  addEventListener("afterprint", endPrint);
  applyTheme();
  if (table && filter) prepareTable();
  figures.forEach((figure) => watcher.observe(figure));
})();
