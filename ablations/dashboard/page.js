// Asks the server what changed and updates those parts. Names, labels and reasons go in by textContent alone.
import { interval, lines, number, si, swatch, trials } from "./charts.js";

const POLL_MS = 2000, READING_MS = 400, AT_FIRST = 9;
const $ = (id) => document.getElementById(id);
const known = {}, chosen = new Map();  // sections by name; whether an arm is shown
let revision = "", skew = 0;

async function poll() {
  let wait = POLL_MS;
  try {
    const headers = revision ? { "If-None-Match": `"${revision}"` } : {};
    const answer = await fetch(`/state?since=${revision}`, { headers, cache: "no-store" });
    if (answer.status !== 304) {
      if (!answer.ok) throw new Error(await answer.text());
      const { revision: now, sections } = await answer.json();
      revision = now;
      Object.assign(known, sections);
      for (const name of Object.keys(sections)) SHOW[name]?.(sections[name]);
      if (known.curves && Object.keys(sections).some((name) => name.startsWith("curve"))) showCurves();
    }
    skew = Date.parse(answer.headers.get("Date")) - Date.now() || 0;
    if (known.workers?.length) SHOW.workers(known.workers);
    if (known.progress?.reading) wait = READING_MS;
    said($("checked"), `Looked at ${new Date().toLocaleTimeString()}; every ${POLL_MS / 1000} seconds while this page is open.`);
    $("checked").classList.remove("gone");
  } catch {
    said($("checked"), "The command that serves this page doesn't answer: what is shown is how it stood then.");
    $("checked").classList.add("gone");
  }
  setTimeout(poll, wait);
}

const SHOW = {
  head(head) {
    said($("name"), `${head.ablation}${head.size === "full" ? "" : ` · ${head.size} size`}`);
    said($("question"), head.question);
    summarise();
  },

  progress(progress) {
    $("progress").hidden = false;
    $("facts").replaceChildren(...["queued", "running", "paused", "finished", "pruned", "failed", "lost", "stopped", "missing"]
      .filter((state) => progress.counts[state] || ["running", "finished", "failed"].includes(state))
      .map((state) => make("div", {}, make("dt", {}, WORDS[state] ?? state), make("dd", { class: state === "failed" && progress.counts[state] ? "failed" : "" }, progress.counts[state] ?? 0))),
      make("div", {}, make("dt", {}, "time left"), make("dd", {}, progress.seconds_left === null ? "–" : `about ${duration(progress.seconds_left)}`)));
    const notes = [...progress.slurm];
    if (progress.reading) notes.unshift(`Reading ${d3.format(",")(progress.reading[0])} of ${d3.format(",")(progress.reading[1])} records.`);
    if (progress.preempted || progress.deaths) notes.push(`So far ${progress.preempted} times preempted and requeued, ${progress.deaths} workers lost.`);
    said($("progress-note"), notes.join(" "));
    const rows = progress.arms.length ? progress.arms : [{ label: "configurations", states: progress.counts }];
    keyed($("arms"), rows, (arm) => arm.name ?? "", barRow, fillBar);
    keys(progress.counts);
    summarise();
  },

  verdict(verdict) {
    $("verdict").hidden = false;
    said($("verdict-words"), verdict.headline);
    $("families").replaceChildren(...verdict.families.map((family) => familyTable(family, verdict)));
    said($("verdict-note"), [verdict.families.length ? caution(verdict) : "", ...(verdict.notes ?? [])].join(" ").trim());
    summarise();
  },

  workers(rows) {
    $("workers").hidden = false;
    $("no-workers").hidden = rows.length > 0;
    $("worker-rows").closest("table").hidden = rows.length === 0;
    $("worker-rows").replaceChildren(...rows.map((row) => make("tr", {},
      make("td", {}, row.label), make("td", { class: "text" }, row.where ?? ""),
      make("td", { class: "wide few" }, ...(row.steps ? [bar([["running", (row.step ?? 0) / row.steps]], `${row.step ?? 0} of ${row.steps} steps`), make("span", { class: "note" }, `${row.step ?? 0} of ${row.steps}`)] : ["starting"])),
      make("td", {}, row.loss === null ? "" : number(row.loss)), make("td", {}, row.rate === null ? "" : si(row.rate)),
      make("td", {}, row.seen ? `${duration(Math.max(0, (Date.now() + skew) / 1000 - row.seen))} ago` : ""),
      make("td", {}, row.seconds_left === null ? "" : duration(row.seconds_left)))));
  },

  failures(found) {
    const rows = found.reasons.map((row) => make("li", {}, make("strong", { class: "failed" }, row.count > 1 ? `${row.count} ${row.state}` : row.state),
      `: ${row.reason}`, make("span", { class: "note" }, row.runs.join(", ") + (row.count > row.runs.length ? ` and ${row.count - row.runs.length} more` : ""))));
    rows.push(...found.unreadable.map((line) => make("li", {}, make("strong", { class: "failed" }, "unreadable"), `: ${line}`)));
    rows.push(...Object.entries(found.set_aside).map(([reason, n]) => make("li", {}, `Set aside: ${n} ${reason}.`)));
    $("failures").hidden = !rows.length;
    $("failure-rows").replaceChildren(...rows);
  },

  search(search) {
    $("search").hidden = false;
    const budget = search.budget_tokens ? `${si(search.tokens)} of ${si(search.budget_tokens)} tokens` : `${search.undrawn} configurations still to draw`;
    const confirming = search.confirmation ? `, and its confirmation has begun: ${counted(search.confirmation)}` : "";
    said($("search-note"), `${search.over ? "The search is over" : budget}${confirming}. ${search.objectives > 1 ? "The first objective is shown." : ""} Pale: trained in part; what is far off is drawn at the edge.`);
    said($("search-metric"), known.head.label);
    trials($("search-chart"), search.values, { title: withUnit(known.head), goal: known.head.goal });
    $("best").replaceChildren(...search.best.map((row) => make("tr", {}, make("td", {}, row.label), make("td", {}, number(row.value)), make("td", { class: "text" }, row.settings))));
    const beside = $("beside");
    if (search.beside === true) beside.replaceChildren(make("a", { href: "/dashboard", target: "_blank", rel: "noopener noreferrer" }, "optuna-dashboard"), " shows every trial of it (to be read only).");
    else said(beside, search.beside ?? "");
    summarise();
  },

  trouble(lines) {
    $("trouble").replaceChildren(...lines.map((line) => make("p", { class: "trouble" }, line)));
  },
};

const WORDS = { running: "in training", stopped: "left by a stopped sweep" };
const PARTS = [["finished", ["finished", "pruned"]], ["running", ["running"]], ["bad", ["failed", "lost"]], ["half", ["stopped", "paused"]]];

function summarise() {
  const { progress, verdict } = known;
  if (!progress) return;
  const total = sum(progress.counts), done = progress.counts.finished ?? 0, what = `${progress.noun}s`;
  const left = progress.seconds_left === null ? "" : `, about ${duration(progress.seconds_left)} left`;
  const others = ["running", "pruned", "paused", "failed", "lost"].filter((s) => progress.counts[s]).map((s) => `, ${progress.counts[s]} ${WORDS[s] ?? s}`).join("");
  const over = progress.under_way === false && !known.search && total === done ? ` All are in: ${known.head?.report ?? "the report"} judges them.` : "";
  const best = known.search?.best.map((row) => ` Best so far${row.group ? ` of ${row.group}` : ""}: ${number(row.value)} (${row.label}).`).join("") ?? "";
  said($("summary"), `${done} of ${total} ${what} finished${others}${left}.${best}${verdict?.families.length ? ` ${short(verdict.headline)}` : ""}${over}`);
  document.title = `(${done}/${total}) ${known.head?.ablation ?? ""}`;
}

const short = (words) => (words.length > 240 ? `${words.slice(0, 240).replace(/[^;.]*$/, "")} …` : words);

function caution(verdict) {
  const share = `${d3.format(".3~g")(100 * (1 - verdict.alpha))}\u00a0%`;
  const kept = verdict.looked === null
    ? `Difference from the control, paired by seed, in ${withUnit(verdict)}. Intervals are confidence sequences: they contain the difference with probability ${share}, each on its own, however often this page is looked at, and the p-values, adjusted by Holm over the arms, hold as often. Intervals use the current runs; the p-value is the smallest seen so far.`
    : `The sweep buys seeds until it is decided. What is shown is as of its own last look (after ${verdict.looked} seeds), and allows for all its looks.`;
  const report = verdict.looked === null ? " They are wider than the report's t intervals, which hold for one look: those may not be looked at before all seeds are in." : "";
  const margin = verdict.margin ? ` The band is the margin of ${verdict.margin} ${verdict.unit}, below which a difference doesn't matter.` : "";
  return `${kept}${report}${margin} ${verdict.goal === "min" ? "Lower" : "Higher"} is better.`;
}

function familyTable(family, verdict) {
  const scale = 1.1 * (d3.max(family.rows.flatMap((r) => [r.low, r.high, r.estimate].filter((v) => v !== null).map(Math.abs))) || 1);
  const head = [family.name, "difference", "interval", "", "p", "pairs", "so far"];
  return make("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": `Running verdict, by ${family.name}` }, make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((name, i) => (name ? make("th", { scope: "col", class: i === 6 ? "text" : "" }, name) : make("td", {}))))),
    make("tbody", {}, ...family.rows.map((row) => {
      const bounds = row.low === null ? "no bound yet" : `${signed(row.low)} … ${signed(row.high)}`;
      return make("tr", {}, make("td", {}, row.label), make("td", {}, row.estimate === null ? "" : signed(row.estimate)), make("td", {}, bounds),
        make("td", {}, interval(row, scale, verdict.margin, `${row.label}: ${row.estimate === null ? "no pair yet" : signed(row.estimate)}, ${bounds}`)),
        make("td", {}, pvalue(row.p_holm, verdict.alpha)), make("td", {}, `${row.n} of ${row.planned}`),
        make("td", { class: "text" }, make("span", { class: kind(row.verdict) }, row.verdict), ...row.notes.map((note) => make("span", { class: "note" }, note))));
    }))));
}

const armsOf = () => d3.range(known.curves.arms).map((place) => known[`curve ${place}`]);

function showCurves() {
  $("curves").hidden = false;
  drawLegend();
  drawCurves();
}

function drawLegend() {
  const arms = armsOf(), names = JSON.stringify(arms.map((arm) => [arm.name, arm.label]));
  arms.forEach((arm, place) => { if (!chosen.has(arm.name)) chosen.set(arm.name, place < AT_FIRST); });
  if ($("legend").dataset.names !== names) {
    $("legend").dataset.names = names;
    $("legend").replaceChildren(...arms.map((arm, place) => {
      const button = make("button", { type: "button" }, swatch(arm, place), make("span", {}, arm.label), make("span", { class: "value" }));
      button.addEventListener("click", () => { chosen.set(arm.name, !chosen.get(arm.name)); drawLegend(); drawCurves(); });
      return button;
    }));
  }
  arms.forEach((arm, place) => {
    const button = $("legend").children[place], last = arm.validation.mean.at(-1);
    button.setAttribute("aria-pressed", String(chosen.get(arm.name)));
    said(button.querySelector(".value"), last === undefined ? "" : number(last));
  });
}

const NONE = { tokens: [], mean: [], sd: [], n: [] };

function drawCurves() {
  const arms = armsOf().map((arm, place) => ({ ...arm, place })).filter((arm) => chosen.get(arm.name));
  const charts = known.curves.charts;
  keyed($("charts"), charts, (chart) => chart.name, () => make("div", {}), (div, chart) => { div.id = `chart-${chart.name}`; });
  charts.forEach((chart, i) => lines($(`chart-${chart.name}`), arms.map((arm) => ({ ...arm, columns: arm[chart.name] ?? NONE })), { title: withUnit(chart), id: `clip-${i}` }));
}

new ResizeObserver(() => {
  if (known.curves) drawCurves();
  if (known.search) SHOW.search(known.search);
}).observe(document.querySelector("main"));

const barRow = () => make("tr", {}, make("td", {}), make("td", { class: "wide" }), make("td", { class: "text" }));

function fillBar(tr, arm) {
  const total = sum(arm.states), [label, cell, words] = tr.children, counts = counted(arm.states);
  said(label, arm.label);
  const parts = PARTS.map(([name, states]) => [name, d3.sum(states, (s) => arm.states[s] ?? 0) / (total || 1)]);
  if (!cell.firstChild) cell.append(bar(parts, counts));
  else [...cell.firstChild.children].forEach((part, i) => { part.style.width = `${100 * parts[i][1]}%`; });
  cell.firstChild.setAttribute("aria-label", counts);
  said(words, counts);
}

function bar(parts, label) {
  const div = make("div", { class: "bar", role: "img", "aria-label": label });
  for (const [name, share] of parts) {
    const part = make("i", { class: name });
    part.style.width = `${100 * share}%`;
    div.append(part);
  }
  return div;
}

function keys(counts) {
  const used = PARTS.map(([name, states]) => [name, states.filter((s) => counts[s])]).filter(([, states]) => states.length);
  $("keys").replaceChildren(...used.flatMap(([name, states]) => [make("i", { class: name }), states.map((s) => WORDS[s] ?? s).join(", ")]));
}

// Rows that stay the same elements while their key is there.
function keyed(parent, rows, key, create, fill) {
  const before = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const now = rows.map((row) => {
    const child = before.get(key(row)) ?? create();
    child.dataset.key = key(row);
    fill(child, row);
    return child;
  });
  if (now.length !== parent.children.length || now.some((child, i) => parent.children[i] !== child)) parent.replaceChildren(...now);
}

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== "") element.setAttribute(name, value);
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

function said(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

const sum = (counts) => d3.sum(Object.values(counts));
const counted = (counts) => Object.entries(counts).filter(([, n]) => n).map(([state, n]) => `${n} ${WORDS[state] ?? state}`).join(", ");
const signed = d3.format("+.3~g");
// Two digits, and as many more as it takes to be on its own side of alpha: 0.0497, not 0.05.
function pvalue(p, alpha) {
  if (p === null || p < 0.0001) return p === null ? "" : "< 0.0001";
  const digits = d3.range(2, 17).find((n) => (Number(p.toPrecision(n)) < alpha) === (p < alpha));
  return d3.format(`.${digits ?? 17}~g`)(p);
}
const withUnit = ({ label, unit }) => (unit ? `${label}, ${unit}` : label);
const kind = (words) => (words === "no verdict yet" ? "waiting" : words.split(/[ ,]/)[0]);

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} days`;
}

poll();
