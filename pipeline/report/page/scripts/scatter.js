"use strict";
// Accuracy against one cost. uPlot draws axes, intervals and the front; points are buttons above it, so that they can be
// focused, read aloud and tested.

(() => {
  const holder = byId("scatter");
  const select = byId("cost-axis");
  const tip = element("div", { class: "tip", hidden: true });
  let shown = null;

  /** 1, 2 and 5 times each power of ten between two values. */
  function ticks(low, high) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const step of [1, 2, 5]) {
        const value = step * 10 ** power;
        if (value >= low && value <= high) found.push(Number(value.toPrecision(2)));
      }
    }
    return found;
  }

  function short(value) {
    if (value >= 1e6) return `${value / 1e6} M`;
    return value >= 1e4 ? `${value / 1e3} k` : `${value}`;
  }

  function words(point, chosen) {
    const interval = point.interval ? ` (${percent(point.interval[0])} to ${percent(point.interval[1])})` : "";
    const cost = point.cost.toLocaleString("en", { maximumFractionDigits: 2 });
    const epochs = point.epochs ? `, ${point.epochs} epochs` : "";
    const front = chosen.front.includes(point.name) ? "; on the Pareto front" : "";
    return `${point.name}${point.kind === "recipe" ? "" : "*"}: ${percent(point.accuracy)} %${interval}, ${cost} ${chosen.unit}${epochs}${front}`;
  }

  function drawMarks(plot, chosen) {
    const { ctx } = plot;
    const x = (value) => plot.valToPos(value, "x", true);
    const y = (value) => plot.valToPos(100 * value, "y", true);
    ctx.save();
    ctx.lineWidth = 2 * devicePixelRatio;
    ctx.strokeStyle = styled("--soft");
    ctx.globalAlpha = 0.6;
    ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.beginPath();
    const front = chosen.points.filter((point) => chosen.front.includes(point.name));
    for (const [index, point] of front.entries()) {
      if (index > 0) ctx.lineTo(x(point.cost), y(front[index - 1].accuracy));
      ctx.lineTo(x(point.cost), y(point.accuracy));
    }
    if (front.length > 0) ctx.lineTo(plot.bbox.left + plot.bbox.width, y(front.at(-1).accuracy));
    ctx.stroke();
    ctx.setLineDash([]);
    ctx.globalAlpha = 1;
    for (const point of chosen.points) {
      if (point.interval) {
        ctx.strokeStyle = colourOf(point.name);
        ctx.beginPath();
        ctx.moveTo(x(point.cost), y(point.interval[0]));
        ctx.lineTo(x(point.cost), y(point.interval[1]));
        ctx.stroke();
      }
    }
    ctx.restore();
  }

  /** Sets each name beside its point where it covers nothing: right, left, above or below; else it is left out. */
  function placeLabels(plot, placed) {
    const taken = placed.map(({ left, top }) => ({ left: left - 8, right: left + 8, top: top - 8, bottom: top + 8 }));
    const usual = Math.max(...placed.map(({ point }) => (point.kind === "recipe" ? point.epochs : 0)));
    for (const { left, top, point } of placed) {
      const text = point.epochs > usual ? `${point.name} (${point.epochs} epochs)` : point.name;
      const label = element("span", { class: "label", "aria-hidden": "true" }, text);
      plot.over.append(label);
      const [width, height] = [label.offsetWidth, label.offsetHeight];
      const corners = [
        [left + 11, top - height / 2],
        [left - 11 - width, top - height / 2],
        [left - width / 2, top - 11 - height],
        [left - width / 2, top + 11],
      ];
      const fits = ([x, y]) => {
        const inside = x >= 0 && x + width <= plot.over.clientWidth && y >= 0 && y + height <= plot.over.clientHeight;
        return inside && taken.every((it) => x > it.right || x + width < it.left || y > it.bottom || y + height < it.top);
      };
      const corner = corners.find(fits);
      if (!corner) {
        label.remove();
        continue;
      }
      const [x, y] = corner;
      label.style.left = `${x}px`;
      label.style.top = `${y}px`;
      taken.push({ left: x, right: x + width, top: y, bottom: y + height });
    }
  }

  function hide() {
    tip.hidden = true;
  }

  function placePoints(plot, chosen) {
    const placed = chosen.points.map((point) => {
      const [left, top] = [plot.valToPos(point.cost, "x"), plot.valToPos(100 * point.accuracy, "y")];
      const text = words(point, chosen);
      const show = () => {
        tip.textContent = text;
        tip.hidden = false;
        tip.style.top = `${top + 14}px`;
        tip.style.left = `${Math.max(0, Math.min(left - 40, plot.over.clientWidth - tip.offsetWidth))}px`;
      };
      const listeners = { onmouseenter: show, onfocus: show, onclick: show, onmouseleave: hide, onblur: hide };
      const button = element("button", { type: "button", class: `point ${point.kind}`, "aria-label": text, ...listeners });
      button.style.cssText = `left:${left}px;top:${top}px;--colour:${colourOf(point.name)}`;
      plot.over.append(button);
      return { left, top, point };
    });
    placeLabels(plot, placed);
    plot.over.append(tip);
  }

  const redraw = responsive(holder, (width, height) => {
    const chosen = PAGE.scatter.find((it) => it.key === select.value);
    const costs = chosen.points.map((point) => point.cost);
    const accuracies = chosen.points.flatMap((point) => [point.accuracy, ...(point.interval ?? [])]);
    const limits = [Math.min(...costs) / 1.5, Math.max(...costs) * 1.7];
    const heights = [100 * Math.min(...accuracies) - 1, Math.min(100, 100 * Math.max(...accuracies) + 1)];
    byId("scatter-intervals").hidden = !chosen.points.some((point) => point.interval);
    byId("scatter-front").hidden = chosen.front.length === 0;
    byId("scatter-no-front").hidden = chosen.front.length > 0;
    hide();
    shown?.destroy();
    shown = new uPlot(
      {
        width,
        height,
        legend: { show: false },
        cursor: { show: false },
        scales: { x: { time: false, distr: 3, range: () => limits }, y: { range: () => heights } },
        axes: [
          axis(chosen.label, { splits: () => ticks(...limits), filter: (_, splits) => splits, values: (_, it) => it.map(short) }),
          axis("test accuracy, %", { size: 44 }),
        ],
        series: [{}, { paths: () => null, points: { show: false } }],
        hooks: { draw: [(plot) => drawMarks(plot, chosen)], ready: [(plot) => placePoints(plot, chosen)] },
      },
      [costs, chosen.points.map((point) => 100 * point.accuracy)],
      holder,
    );
  });

  options(select, PAGE.scatter.map((it) => [it.key, it.label]), "parameters");
  select.addEventListener("change", redraw);
  redraw();
})();
