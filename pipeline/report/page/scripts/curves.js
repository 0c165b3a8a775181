"use strict";
// A metric by epoch: a recipe's mean over its seeds, with their range as a band; published epochs dashed.

(() => {
  const holder = byId("curve-chart");
  const list = byId("curve-lines");
  const select = byId("curve-metric");
  const hidden = new Set();
  let plot = null;
  let lines = [];

  const metric = () => PAGE.curves.metrics.find((it) => it.key === select.value);

  function format(value) {
    if (value === null || value === undefined) return "–";
    return metric().scale === 100 ? value.toFixed(2) : value.toPrecision(4);
  }

  /** Mean, least and greatest value of each epoch over a line's runs; null where a run has no such epoch. */
  function summarise(runs, scale) {
    const epochs = Math.max(...runs.map((values) => values.length));
    return Array.from({ length: epochs }, (_, epoch) => {
      const values = runs.map((run) => run[epoch]).filter((value) => value !== undefined);
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      return [mean, Math.min(...values), Math.max(...values)].map((value) => scale * value);
    });
  }

  function readOut(index) {
    const epochs = plot.data[0];
    const epoch = epochs[index ?? epochs.length - 1];
    const values = lines.map((line, position) => {
      const value = line.rows.at(index ?? -1)?.[0];
      list.querySelectorAll("output")[position].textContent = format(value);
      return `${line.name} ${format(value)}`;
    });
    list.querySelector(".epoch").textContent = index === null ? "last epoch" : `epoch ${epoch}`;
    return `epoch ${epoch}: ${values.join(", ")}`;
  }

  function makeLegend() {
    const labels = lines.map((line) => {
      const swatch = element("span", { class: `swatch ${line.kind}`, "aria-hidden": "true" });
      swatch.style.setProperty("--colour", colourOf(line.name));
      const change = (event) => {
        if (event.target.checked) hidden.delete(line.name);
        else hidden.add(line.name);
        redraw();
      };
      const box = element("input", { type: "checkbox", checked: !hidden.has(line.name), onchange: change });
      const name = line.kind === "recipe" ? line.name : `${line.name}*`;
      return element("label", {}, box, swatch, name, element("output"));
    });
    const focused = [...list.querySelectorAll("input")].indexOf(document.activeElement);
    list.replaceChildren(element("span", { class: "epoch" }), ...labels);
    list.querySelectorAll("input")[focused]?.focus();
  }

  /** Series and bands of uPlot, and the rows of its data, for the lines that are shown. */
  function arrange() {
    const epochs = Math.max(...lines.map((line) => line.rows.length));
    const [series, bands, data] = [[{}], [], [Array.from({ length: epochs }, (_, index) => index + 1)]];
    for (const line of lines) {
      const colour = colourOf(line.name);
      const show = !hidden.has(line.name);
      const dash = line.kind === "recipe" ? [] : [7, 4];
      const column = (which) => Array.from({ length: epochs }, (_, index) => line.rows[index]?.[which] ?? null);
      series.push({ show, stroke: colour, width: 2, dash, points: { show: line.rows.length < 20 } });
      data.push(column(0));
      if (line.runs.length > 1) {
        bands.push({ series: [series.length + 1, series.length], fill: `color-mix(in srgb, ${colour} 22%, transparent)` });
        for (const which of [1, 2]) {
          series.push({ show, width: 0, points: { show: false } });
          data.push(column(which));
        }
      }
    }
    return { series, bands, data };
  }

  /** The first tenth of the epochs may lie outside: what is compared is the end. */
  function heights() {
    const late = lines
      .filter((line) => !hidden.has(line.name))
      .flatMap((line) => line.rows.slice(Math.floor(line.rows.length / 10)).flat());
    if (late.length === 0) return [0, 1];
    const [low, high] = [Math.min(...late), Math.max(...late)];
    const margin = 0.05 * (high - low || 1);
    return [low - margin, high + margin];
  }

  const redraw = responsive(holder, (width, height) => {
    const { key, label, unit, scale } = metric();
    lines = PAGE.curves.lines
      .filter((line) => key in line.values)
      .map(({ name, kind, runs, values }) => ({ name, kind, runs, rows: summarise(values[key], scale) }));
    makeLegend();
    const { series, bands, data } = arrange();
    const limits = heights();
    const zoomed = plot && epochsShown(plot);
    plot?.destroy();
    plot = new uPlot(
      {
        width,
        height,
        legend: { show: false },
        cursor: { drag: { x: true, y: true, uni: 30 }, points: { size: 8 } },
        scales: { x: { time: false }, y: { range: () => limits } },
        axes: [axis("epoch", { incrs: [1, 2, 5, 10, 20, 50, 100, 200] }), axis(unit ? `${label}, ${unit}` : label, { size: 52 })],
        series,
        bands,
        hooks: {
          setCursor: [(drawn) => plot && readOut(drawn.cursor.idx ?? null)],
          setScale: [(drawn) => (byId("curve-reset").disabled = isWhole(drawn))],
        },
      },
      data,
      holder,
    );
    if (zoomed) plot.setScale("x", zoomed);
    readOut(null);
  });

  /** The first and the last epoch that are shown; null where all are. */
  function epochsShown({ data, scales }) {
    const { min, max } = scales.x;
    return min > data[0][0] || max < data[0].at(-1) ? { min, max } : null;
  }

  function isWhole({ data, scales }) {
    const [first, last] = [data[0][0], data[0].at(-1)];
    const [low, high] = heights();
    return scales.x.min <= first && scales.x.max >= last && scales.y.min <= low && scales.y.max >= high;
  }

  /** Changes the scale; the epoch under the cursor stays the same, elsewhere once uPlot has set the scale. */
  function keepEpoch(change) {
    const { idx } = plot.cursor;
    change();
    if (idx !== null) queueMicrotask(() => setEpoch(idx));
  }

  function showAll() {
    keepEpoch(() => plot.setData(plot.data));
  }

  function setEpoch(index) {
    plot.setCursor({ left: plot.valToPos(plot.data[0][index], "x"), top: plot.over.clientHeight / 2 });
  }

  function zoom(factor) {
    const { min, max } = plot.scales.x;
    const middle = plot.cursor.idx === null ? (min + max) / 2 : plot.data[0][plot.cursor.idx];
    const [first, last] = [plot.data[0][0], plot.data[0].at(-1)];
    const half = Math.max(1, ((max - min) / 2) * factor);
    const limits = { min: Math.max(first, middle - half), max: Math.min(last, middle + half) };
    keepEpoch(() => plot.setScale("x", limits));
  }

  function move(step) {
    const epochs = plot.data[0];
    const index = Math.max(0, Math.min(epochs.length - 1, (plot.cursor.idx ?? (step > 0 ? -1 : epochs.length)) + step));
    const { min, max } = plot.scales.x;
    if (epochs[index] < min || epochs[index] > max) {
      plot.setData(plot.data); // all epochs; uPlot sets the scale before the next task
      queueMicrotask(() => setEpoch(index));
    } else {
      setEpoch(index);
    }
    byId("curve-spoken").textContent = readOut(index);
  }

  /** uPlot follows the mouse alone. */
  function touch(event) {
    if (event.pointerType !== "touch") return;
    const { left, top } = plot.over.getBoundingClientRect();
    plot.setCursor({ left: event.clientX - left, top: event.clientY - top });
  }

  for (const kind of ["pointerdown", "pointermove"]) holder.addEventListener(kind, touch);
  const keys = {
    ArrowLeft: () => move(-1),
    ArrowRight: () => move(1),
    "+": () => zoom(0.5),
    "-": () => zoom(2),
    Escape: showAll,
  };
  holder.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return; // those are the browser's
    keys[event.key]();
    event.preventDefault();
  });
  byId("curve-reset").addEventListener("click", () => {
    showAll();
    holder.focus(); // the button is disabled now
  });
  options(select, PAGE.curves.metrics.map((it) => [it.key, it.label]), "val_accuracy");
  select.addEventListener("change", redraw);
  redraw();
})();
