"use strict";
// Data come from JSON in the page. Text goes in by textContent, or escaped where Plotly draws it.

const DATA = JSON.parse(document.getElementById("data").textContent);
const FIRST_ROWS = 100;
const COLOURS = ["#2f6fb0", "#bf3f3f", "#2e7d4f", "#b8860b", "#7d4f9e", "#00838f", "#c2185b", "#6d7a1f"];
const PAPER_COLOURS = { V1: "#7a8599", V2: "#c98a1b", V3: "#3f8f5f", V4: "#8d5bb0" };
const $ = (id) => document.getElementById(id);

const RUNS = DATA.rows.map((cells, number) => {
  const run = { number };
  DATA.columns.forEach((key, index) => { run[key] = cells[index]; });
  run.text = [run.name, run.command, run.sweep, run.problem].join(" ").toLowerCase();
  return run;
});

// ---- the table

const number = (digits) => (value) => (value === null ? "-" : value.toFixed(digits));
const signed = (value) => (value === null ? "-" : (value > 0 ? "+" : "") + value.toFixed(2));
const millions = (digits) => (value) => (value === null ? "-" : (value / 1e6).toFixed(digits));
const word = (value) => (value === null || value === "" ? "-" : String(value));
const minutes = (value) => (value === null ? "-" : (value / 60).toFixed(1));
const day = (value) => new Date(value * 1000).toISOString().slice(0, 16).replace("T", " ");
const COLUMNS = [
  { key: "name", title: "Run", show: word, isWord: true },
  { key: "state", title: "State", show: word, isWord: true },
  { key: "model", title: "Model", show: word, isWord: true },
  { key: "width_mult", title: "Width", show: word },
  { key: "resolution", title: "Side px", show: word },
  { key: "data", title: "Data", show: word, isWord: true },
  { key: "top1", title: "Top-1 %", show: number(2) },
  { key: "paper_top1", title: "Paper %", show: number(1) },
  { key: "gap", title: "Gap", show: signed },
  { key: "madds", title: "Madds M", show: millions(1) },
  { key: "params", title: "Params M", show: millions(2) },
  { key: "epochs", title: "Epochs", show: number(0) },
  { key: "seconds", title: "Minutes", show: minutes },
  { key: "changed", title: "Written, UTC", show: day },
  { key: "sweep", title: "Sweep", show: word, isWord: true },
];

const state = { sort: "changed", falls: true, limit: FIRST_ROWS, chosen: [], metric: "" };

function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

function shownRuns() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = [...document.querySelectorAll("#filters select")]
    .filter((each) => each.value !== "")
    .map((each) => [each.dataset.key, each.value]);
  const found = RUNS.filter(
    (run) => wanted.every(([key, value]) => String(run[key]) === value) && words.every((each) => run.text.includes(each)),
  );
  const key = state.sort;
  const order = (one, other) => {
    const [a, b] = [one[key], other[key]];
    const [noA, noB] = [a === null || a === "", b === null || b === ""];
    // those without a value come last, either way
    if (noA || noB) return noA - noB;
    const sign = typeof a === "string" ? a.localeCompare(b) : a - b;
    return state.falls ? -sign : sign;
  };
  return found.sort((one, other) => order(one, other) || one.number - other.number);
}

function drawHeads() {
  const row = $("heads");
  const choose = element("th", "Choose", "word");
  choose.scope = "col";
  row.append(choose);
  for (const column of COLUMNS) {
    const head = element("th", undefined, column.isWord ? "word" : "");
    head.scope = "col";
    head.dataset.key = column.key;
    const button = element("button", column.title);
    button.type = "button";
    button.addEventListener("click", () => {
      state.falls = state.sort === column.key ? !state.falls : !column.isWord;
      state.sort = column.key;
      draw();
    });
    head.append(button);
    row.append(head);
  }
}

function drawRows(runs) {
  for (const head of document.querySelectorAll("#heads th[data-key]")) {
    const isSorted = head.dataset.key === state.sort;
    head.ariaSort = isSorted ? (state.falls ? "descending" : "ascending") : "none";
    const title = COLUMNS.find((column) => column.key === head.dataset.key).title;
    head.firstChild.textContent = title + (isSorted ? (state.falls ? " ↓" : " ↑") : "");
  }
  const rows = document.createDocumentFragment();
  for (const run of runs.slice(0, state.limit)) rows.append(rowOf(run));
  $("rows").replaceChildren(rows);
  $("count").textContent = `${runs.length} of ${RUNS.length} runs` + (runs.length > state.limit ? `, the first ${state.limit} shown` : "");
  $("more").hidden = runs.length <= state.limit;
}

function rowOf(run) {
  const row = element("tr", undefined, state.chosen.includes(run) ? "chosen" : "");
  const cell = element("td", undefined, "word");
  const box = element("input");
  box.type = "checkbox";
  box.checked = state.chosen.includes(run);
  box.setAttribute("aria-label", `Choose ${run.name}`);
  box.addEventListener("change", () => choose(run, box.checked));
  cell.append(box);
  row.append(cell);
  for (const column of COLUMNS) {
    const shown = column.show(run[column.key]);
    const each = element("td", shown, column.isWord ? "word" : "");
    if (column.key === "name") {
      each.classList.add("name");
      each.title = run.name;
    }
    if (column.key === "gap" && run.gap !== null) each.classList.add(run.gap >= 0 ? "good" : "bad");
    if (column.key === "state") {
      each.textContent = run.kind === "train" ? run.state : `${run.kind}, ${run.state}`;
      if (run.problem) each.title = run.problem;
      if (run.state === "failed" || run.state === "damaged") each.classList.add("bad");
    }
    row.append(each);
  }
  return row;
}

function fillFilters() {
  for (const list of document.querySelectorAll("#filters select")) {
    const values = new Set(RUNS.map((run) => run[list.dataset.key]).filter((value) => value !== null && value !== ""));
    list.append(new Option("all", ""));
    for (const value of [...values].map(String).sort()) list.append(new Option(value, value));
  }
}

// ---- pictures

let isPlotlyHere = false;

function ready() {
  return isPlotlyHere;
}

// Plotly reads a few tags and entities in its texts
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");
const short = (text) => (text.length > 46 ? `${text.slice(0, 43)}...` : text);

// labels that are alike, with their number: Plotly would draw them as one
function apart(labels) {
  const counts = new Map();
  for (const label of labels) counts.set(label, (counts.get(label) ?? 0) + 1);
  return labels.map((label, index) => (counts.get(label) > 1 ? `${label} (${index + 1})` : label));
}

function layout(more) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true };
  const { xaxis, yaxis, ...rest } = more;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--text"), size: 12 }, margin: { l: 48, r: 12, t: 12, b: 44 },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, hovermode: "closest",
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

const OPTIONS = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };

function drawFront(runs) {
  if (!ready()) return;
  const traces = Object.entries(DATA.papers).map(([generation, points]) => ({
    name: `MobileNet${generation}, published`, mode: "lines+markers", type: "scatter",
    x: points.map((each) => each[0]), y: points.map((each) => each[1]),
    text: points.map((each) => plain(each[2])), hovertemplate: "%{text}<br>%{x:.1f} M, %{y:.1f} %<extra></extra>",
    line: { color: PAPER_COLOURS[generation], width: 1.5 }, marker: { size: 5 },
  }));
  const byData = new Map();
  for (const run of runs) {
    if (run.top1 === null || run.madds === null) continue;
    const key = run.data ?? "?";
    byData.set(key, [...(byData.get(key) ?? []), run]);
  }
  [...byData.keys()].sort().forEach((key, index) => {
    const here = byData.get(key);
    traces.push({
      name: `runs on ${plain(key)}`, mode: "markers", type: "scatter",
      x: here.map((run) => run.madds / 1e6), y: here.map((run) => run.top1),
      text: here.map((run) => plain(run.name)), customdata: here.map((run) => run.number),
      hovertemplate: "%{text}<br>%{x:.1f} M, %{y:.2f} %<extra></extra>",
      marker: { size: 9, symbol: "diamond", color: COLOURS[index % COLOURS.length], opacity: 0.8 },
    });
  });
  const axes = {
    xaxis: { type: "log", title: { text: "multiply-adds of an image, millions" }, dtick: "D2" },
    yaxis: { title: { text: "top-1 %" } },
  };
  Plotly.react("front", traces, layout(axes), OPTIONS);
}

function drawCurves(details) {
  const names = new Set(details.flatMap((each) => Object.keys({ ...each.curves, ...each.steps })));
  names.delete("epoch");
  names.delete("step");
  const list = $("metric");
  const values = [...names].sort();
  list.replaceChildren(...values.map((each) => new Option(each, each)));
  const known = (key) => details.filter((each) => key in each.curves).length;
  const usual = known("val_ema/top1") === details.length ? "val_ema/top1" : "val/top1";
  list.value = [state.metric, usual].find((each) => values.includes(each)) ?? values[0] ?? "";
  if (!ready()) return;
  // curves of updates have an axis of their own
  const [of, axis] = list.value.endsWith("_step") ? ["steps", "step"] : ["curves", "epoch"];
  const traces = details.map((each, index) => ({
    name: plain(short(state.chosen[index].name)), mode: "lines+markers", type: "scatter",
    x: each[of][axis] ?? [], y: each[of][list.value] ?? [],
    line: { color: COLOURS[index % COLOURS.length], width: 2 }, marker: { size: 4 },
  }));
  const papers = list.value.endsWith("/top1") ? [...new Set(state.chosen.map((run) => (run.gap === null ? null : run.paper_top1)))] : [];
  const shapes = papers.filter((each) => each !== null).map((y) => ({
    type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { dash: "dash", width: 1, color: "#bf3f3f" },
    label: { text: `paper ${y} %` },
  }));
  const last = Math.max(...details.flatMap((each) => each[of][axis] ?? []));
  const axes = { xaxis: { title: { text: axis }, dtick: last <= 12 ? 1 : undefined }, yaxis: { title: { text: list.value } }, shapes, showlegend: true };
  Plotly.react("curves", traces, layout(axes), OPTIONS);
}

// ---- chosen runs

async function unpack(id) {
  const bytes = Uint8Array.from(atob($(id).textContent), (each) => each.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function detailOf(run) {
  if (run.detail === undefined) run.detail = JSON.parse(await unpack(`run-${run.number}`));
  return run.detail;
}

function choose(run, isChosen) {
  state.chosen = state.chosen.filter((each) => each !== run);
  if (isChosen) state.chosen.push(run);
  draw();
}

async function drawChosen() {
  const chosen = [...state.chosen];
  $("chosen").hidden = chosen.length === 0;
  if (!chosen.length) return;
  const details = await Promise.all(chosen.map(detailOf));
  // others may have been chosen meanwhile
  if (chosen.length !== state.chosen.length || chosen.some((run, index) => run !== state.chosen[index])) return;
  drawCurves(details);
  drawDifferences(chosen, details);
  $("details").replaceChildren(...chosen.map((run, index) => detailCard(run, details[index])));
  chosen.forEach((run, index) => drawAnswers(run, details[index]));
}

function drawDifferences(runs, details) {
  const table = $("differences");
  // a run whose configuration is not known has none
  const keys = [...new Set(details.flatMap((each) => Object.keys(each.config ?? {})))].sort();
  const value = (detail, key) => (detail.config === null ? "-" : detail.config[key] ?? DATA.common[key] ?? "-");
  const isKnown = details.every((each) => each.config !== null);
  const rows = keys
    .map((key) => [key, ...details.map((each) => String(value(each, key)))])
    .filter(([, ...cells]) => new Set(cells).size > 1);
  const head = element("tr");
  head.append(...["Key", ...runs.map((run) => run.name)].map((each) => element("th", each)));
  const thead = element("thead");
  thead.append(head);
  const body = element("tbody");
  for (const cells of rows) {
    const row = element("tr");
    row.append(...cells.map((each) => element("td", each)));
    body.append(row);
  }
  if (!rows.length) {
    const row = element("tr");
    row.append(element("td", runs.length < 2 ? "Choose a second run." : isKnown ? "Nothing: the configurations are alike." : "Not known: a run has no configuration here."));
    body.append(row);
  }
  table.replaceChildren(thead, body);
}

function detailCard(run, detail) {
  const card = element("article", undefined, "run");
  card.append(element("h3", run.name));
  if (run.problem) card.append(element("p", run.problem, "bad"));
  if (detail.reason) card.append(element("p", `Not compared with the paper: ${detail.reason}`, "note"));
  if (run.command) {
    const line = element("div", undefined, "command");
    const copy = element("button", "Copy");
    copy.type = "button";
    copy.setAttribute("aria-label", `Copy the command of ${run.name}`);
    copy.addEventListener("click", () => copyText(run.command, copy));
    line.append(element("code", run.command), copy);
    card.append(line);
  }
  if (detail.made_by) card.append(element("p", detail.made_by, "note"));
  if (detail.answers) {
    card.append(element("p", detail.answers.of, "note"));
    const pair = element("div", undefined, "pair");
    for (const name of ["classes", "confusion"]) {
      const chart = element("div", undefined, "chart");
      chart.id = `${name}-${run.number}`;
      chart.setAttribute("role", "img");
      chart.setAttribute("aria-label", `${name === "classes" ? "Accuracy by class" : "Confusion matrix"} of ${run.name}`);
      pair.append(chart);
    }
    card.append(pair);
    if (detail.answers.most_confused.length) {
      card.append(element("p", `Most confused: ${detail.answers.most_confused.map(([label, answer, count]) => `${label} seen as ${answer} (${count})`).join(", ")}`));
    }
  }
  if (detail.errors) {
    card.append(element("h3", "Worst images"));
    const picture = element("img");
    picture.src = detail.errors;
    picture.alt = `Contact sheet of the images that ${run.name} gets most wrong, with label and answer`;
    card.append(picture);
  }
  if (detail.left_out) card.append(element("p", detail.left_out, "note"));
  return card;
}

function drawAnswers(run, detail) {
  if (!detail.answers || !ready()) return;
  const { classes, top1, matrix } = detail.answers;
  const names = apart(classes.map(short)).map(plain);
  const bars = [{ type: "bar", orientation: "h", y: names, x: top1, marker: { color: COLOURS[0] }, hovertemplate: "%{y}: %{x:.1f} %<extra></extra>" }];
  const axes = { xaxis: { title: { text: "top-1 % by class" }, range: [0, 100] }, yaxis: { type: "category", autorange: "reversed" } };
  Plotly.react(`classes-${run.number}`, bars, layout(axes), OPTIONS);
  if (!matrix) return $(`confusion-${run.number}`).remove();
  const counts = classes.map(() => classes.map(() => 0));
  for (const [label, answer, count] of matrix) counts[label][answer] = count;
  const shares = counts.map((row) => { const sum = row.reduce((a, b) => a + b, 0) || 1; return row.map((each) => (100 * each) / sum); });
  const heat = [{
    type: "heatmap", x: names, y: names, z: shares, customdata: counts, colorscale: "Blues", reversescale: true, zmin: 0, zmax: 100, showscale: false,
    hovertemplate: "%{y} seen as %{x}: %{customdata} images<extra></extra>",
  }];
  Plotly.react(`confusion-${run.number}`, heat, layout({ xaxis: { type: "category", title: { text: "answer" } }, yaxis: { type: "category", autorange: "reversed", title: { text: "label" } } }), OPTIONS);
}

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // a page from the file system may not be allowed to
    const line = button.previousSibling;
    getSelection().selectAllChildren(line);
    button.textContent = "Selected";
  }
}

// ---- all together

function draw() {
  const runs = shownRuns();
  drawRows(runs);
  drawFront(runs);
  drawChosen();
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = name === "dark" ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", `Show the page ${name === "dark" ? "light" : "dark"}`);
}

async function start() {
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  $("about").textContent = DATA.about;
  fillFilters();
  drawHeads();
  if (RUNS.length === 1) state.chosen = [RUNS[0]];
  draw();
  $("theme").addEventListener("click", () => {
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    draw();
  });
  $("filters").addEventListener("input", () => { state.limit = FIRST_ROWS; draw(); });
  $("filters").addEventListener("reset", () => setTimeout(draw));
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("more").addEventListener("click", () => { state.limit += 10 * FIRST_ROWS; draw(); });
  $("metric").addEventListener("change", (event) => { state.metric = event.target.value; drawChosen(); });
  $("unchoose").addEventListener("click", () => { state.chosen = []; draw(); });
  document.body.dataset.state = "usable";
  // the table can be used before the library for pictures is read
  await new Promise((done) => setTimeout(done));
  const script = element("script", await unpack("plotly"));
  document.head.append(script);
  isPlotlyHere = typeof Plotly !== "undefined";
  draw();
  $("front").on?.("plotly_click", (event) => {
    const found = RUNS[event.points[0].customdata];
    if (found) choose(found, !state.chosen.includes(found));
  });
  document.body.dataset.state = "ready";
}

start();
