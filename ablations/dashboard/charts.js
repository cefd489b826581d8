// Charts of prepared data, drawn with D3. Names go in as text, never as markup.
const HEIGHT = 260, MARGIN = { top: 26, right: 14, bottom: 38, left: 52 };
const DASHES = ["", "6 3", "2 3", "8 3 2 3"];  // where colours come round again

export const number = d3.format(".4~g");
export const si = (value) => d3.format(".3~s")(value).replace("G", "B");

export function swatch(arm, place) {
  const svg = d3.create("svg").attr("width", 22).attr("height", 10).attr("aria-hidden", "true");
  svg.append("line").attr("class", "swatch").style("--arm", arm.colour).attr("stroke-dasharray", dash(place))
    .attr("x1", 0).attr("x2", 22).attr("y1", 5).attr("y2", 5);
  return svg.node();
}

const dash = (place) => DASHES[Math.floor(place / 9) % DASHES.length] || null;

// arms: [{label, colour, place, columns: {tokens, mean, sd, n}}]
export function lines(target, arms, { title, id }) {
  const shown = arms.map((arm) => ({ ...arm, points: rows(arm.columns) })).filter((arm) => arm.points.length);
  const said = shown.map((arm) => `${arm.label} ${number(arm.points.at(-1).mean)}`).join("; ");
  const width = room(target), svg = frame(width, `${title} by training tokens: ${said || "nothing yet"}`);
  text(svg, title, 0, 14);
  if (!shown.length) {
    text(svg, arms.length ? "nothing yet" : "no arm is chosen", MARGIN.left, HEIGHT / 2, "soft");
    target.replaceChildren(svg.node());
    return;
  }
  const points = shown.flatMap((arm) => arm.points);
  const most = d3.max(points, (p) => p.tokens), late = points.filter((p) => p.tokens > .1 * most);
  const low = d3.min(points, (p) => p.mean - (p.sd ?? 0)), high = d3.max(late, (p) => p.mean + (p.sd ?? 0));
  const x = d3.scaleLinear([0, most], [MARGIN.left, width - MARGIN.right]);
  const y = d3.scaleLinear([low, Math.max(high, low + 1e-9)], [HEIGHT - MARGIN.bottom, MARGIN.top]).nice();
  axes(svg, width, x, y, "training tokens", si);
  svg.append("clipPath").attr("id", id).append("rect").attr("x", MARGIN.left).attr("y", MARGIN.top)
    .attr("width", width - MARGIN.left - MARGIN.right).attr("height", HEIGHT - MARGIN.top - MARGIN.bottom);
  const plot = svg.append("g").attr("clip-path", `url(#${id})`);
  for (const arm of shown) {
    const group = plot.append("g").style("--arm", arm.colour);
    group.append("path").attr("class", "band").attr("d", d3.area().defined((p) => p.sd !== null)
      .x((p) => x(p.tokens)).y0((p) => y(p.mean - p.sd)).y1((p) => y(p.mean + p.sd))(arm.points));
    group.append("path").attr("class", "line").attr("stroke-dasharray", dash(arm.place))
      .attr("d", d3.line().x((p) => x(p.tokens)).y((p) => y(p.mean))(arm.points));
    if (arm.points.length === 1) group.append("circle").attr("class", "dot").attr("r", 3).attr("cx", x(arm.points[0].tokens)).attr("cy", y(arm.points[0].mean));
  }
  target.replaceChildren(svg.node());
}

// values: [[trial, value, state, label]]
export function trials(target, values, { title, goal }) {
  const done = values.filter(([, value]) => value !== null);
  const finished = done.filter(([, , state]) => state === "finished").sort((a, b) => a[0] - b[0]);
  const better = goal === "min" ? Math.min : Math.max;
  let best = null;
  const steps = finished.map(([trial, value]) => [trial, (best = best === null ? value : better(best, value))]);
  const width = room(target), svg = frame(width, `${title} by trial${best === null ? ": nothing yet" : `, best ${number(best)} of ${finished.length} finished`}`);
  text(svg, title, 0, 14);
  if (!done.length) {
    text(svg, "nothing yet", MARGIN.left, HEIGHT / 2, "soft");
  } else {
    const x = d3.scaleLinear([0, Math.max(1, d3.max(done, (d) => d[0]))], [MARGIN.left, width - MARGIN.right]);
    // A few trials that diverged shouldn't flatten all others.
    const sorted = done.map((d) => d[1]).sort(d3.ascending), span = [d3.quantile(sorted, .02), d3.quantile(sorted, .9)];
    const y = d3.scaleLinear([Math.min(span[0], best ?? span[0]), Math.max(span[1], best ?? span[1])], [HEIGHT - MARGIN.bottom, MARGIN.top]).nice().clamp(true);
    axes(svg, width, x, y, "trial", d3.format("d"));
    const group = svg.append("g").style("--arm", "var(--going)");
    for (const [trial, value, state, label] of done) {
      group.append("circle").attr("class", "dot").attr("r", 3.2).attr("opacity", state === "finished" ? .85 : .35)
        .attr("cx", x(trial)).attr("cy", y(value)).append("title").text(`${label}: ${number(value)} (${state})`);
    }
    group.append("path").attr("class", "line").attr("d", d3.line().curve(d3.curveStepAfter).x((d) => x(d[0])).y((d) => y(d[1]))(steps));
  }
  target.replaceChildren(svg.node());
}

// One row's estimate with its interval, on a scale that all rows of a family share.
export function interval(row, scale, margin, label) {
  const svg = d3.create("svg").attr("width", 160).attr("height", 20).attr("role", "img").attr("aria-label", label);
  const x = d3.scaleLinear([-scale, scale], [4, 156]).clamp(true);
  if (margin) svg.append("rect").attr("class", "margin").attr("x", x(-margin)).attr("width", x(margin) - x(-margin)).attr("y", 1).attr("height", 18);
  svg.append("line").attr("class", "rule").attr("x1", x(0)).attr("x2", x(0)).attr("y1", 1).attr("y2", 19);
  if (row.low !== null) svg.append("line").attr("class", "interval").attr("x1", x(row.low)).attr("x2", x(row.high)).attr("y1", 10).attr("y2", 10);
  if (row.estimate !== null) svg.append("circle").attr("class", "estimate").attr("r", 4).attr("cx", x(row.estimate)).attr("cy", 10);
  return svg.node();
}

const rows = (c) => c.tokens.map((tokens, i) => ({ tokens, mean: c.mean[i], sd: c.sd[i], n: c.n[i] }));

// Text keeps its size on a narrow screen: the chart gets fewer pixels instead of smaller ones.
const room = (target) => Math.max(260, Math.min(620, target.clientWidth || 460));

function frame(width, label) {
  return d3.create("svg").attr("class", "chart").attr("viewBox", `0 0 ${width} ${HEIGHT}`).attr("width", width)
    .attr("role", "img").attr("aria-label", label);
}

function text(svg, words, x, y, kind = "") {
  svg.append("text").attr("x", x).attr("y", y).attr("class", kind).text(words);
}

function axes(svg, width, x, y, name, format) {
  const below = svg.append("g").attr("transform", `translate(0,${HEIGHT - MARGIN.bottom})`);
  below.call(d3.axisBottom(x).ticks(width < 380 ? 4 : 6).tickFormat(format).tickSizeOuter(0));
  const beside = svg.append("g").attr("transform", `translate(${MARGIN.left},0)`);
  beside.call(d3.axisLeft(y).ticks(5).tickSize(-(width - MARGIN.left - MARGIN.right)));
  beside.select(".domain").remove();
  svg.append("text").attr("class", "soft").attr("x", width - MARGIN.right).attr("y", HEIGHT - 4).attr("text-anchor", "end").text(name);
}
