"use strict";
// Two recipes against each other: the pair's verdict, each class, the images that only one gets right, confusions.

(() => {
  const { verdicts, recalls, confusions, counts, thumbnails, images, default: chosen } = PAGE.pairs;
  const selects = [byId("pair-a"), byId("pair-b")];
  const COLUMNS = 20; // of the sprite
  const THUMBNAIL = 56; // pixels on the page

  function bar([value, low, high], limits, name) {
    const at = (fraction) => `${(100 * (fraction - limits[0])) / (limits[1] - limits[0])}%`;
    const interval = element("i");
    interval.style.cssText = `left:${at(low)};right:calc(100% - ${at(high)});background:${colourOf(name)}`;
    const mark = element("b");
    mark.style.left = at(value);
    return element("span", { class: "bar", "aria-hidden": "true" }, interval, mark);
  }

  function showClasses(names) {
    const both = names.map((name) => recalls[name]);
    const limits = [Math.min(...both.flat().map((it) => it[1])), Math.max(...both.flat().map((it) => it[2]))];
    byId("pair-scale").textContent = `${percent(limits[0], 1)} to ${percent(limits[1], 1)}`;
    byId("pair-classes").tHead.rows[0].replaceChildren(
      element("th", { scope: "col" }, "class"),
      ...names.map((name) => element("th", { scope: "col", class: "number" }, `${name}, %`)),
      element("th", { scope: "col", class: "number" }, "difference"),
    );
    const rows = PAGE.classes.map((label, index) => {
      const cells = names.map((name, side) => {
        const [value, low, high] = both[side][index];
        const interval = element("span", { class: "interval" }, `${percent(low, 1)} to ${percent(high, 1)}`);
        return element("td", { class: "number" }, percent(value, 1), bar([value, low, high], limits, name), interval);
      });
      const difference = 100 * (both[0][index][0] - both[1][index][0]);
      const sign = difference > 0 ? "+" : "";
      cells.push(element("td", { class: "number" }, sign + difference.toFixed(1)));
      return element("tr", {}, element("th", { scope: "row" }, label), ...cells);
    });
    byId("pair-classes").tBodies[0].replaceChildren(...rows);
  }

  function thumbnail({ index, it, right, wrong }) {
    const picture = element("span", { class: "thumb", role: "img" });
    const label = PAGE.classes[it.label];
    const mistaken = PAGE.classes[it.predicted[wrong]];
    const words = `${label}; ${right}: ${label}, ${it.percent[right]} %; ${wrong}: ${mistaken}, ${it.percent[wrong]} %`;
    picture.setAttribute("aria-label", words);
    picture.title = words;
    const [x, y] = [THUMBNAIL * (index % COLUMNS), THUMBNAIL * Math.floor(index / COLUMNS)];
    picture.style.backgroundPosition = `-${x}px -${y}px`;
    return element("li", {}, picture, element("span", { "aria-hidden": "true" }, `${label} → ${mistaken}`));
  }

  function showImages(holder, right, wrong) {
    const found = thumbnails
      .map((it, index) => ({ it, index, right, wrong }))
      .filter(({ it }) => it.predicted[right] === it.label && it.predicted[wrong] !== it.label)
      .toSorted((a, b) => b.it.percent[right] + b.it.percent[wrong] - a.it.percent[right] - a.it.percent[wrong]);
    const total = counts[right][wrong].toLocaleString("en");
    const shown = found.length > 0 ? `; ${found.length} of them here` : "";
    holder.replaceChildren(
      element("h3", {}, `${right} right, ${wrong} wrong`),
      element("p", { class: "note" }, `${total} of ${images.toLocaleString("en")} validation images${shown}`),
      element("ul", { class: "thumbs", tabindex: found.length > 0 && "0" }, ...found.map(thumbnail)),
    );
  }

  function showConfusion(table, name) {
    const matrix = confusions[name];
    table.caption.textContent = name;
    const corner = element("td");
    const head = PAGE.classes.map((label) => element("th", { scope: "col" }, element("span", {}, label)));
    const rows = matrix.map((row, truth) => {
      const total = row.reduce((sum, value) => sum + value, 0) || 1;
      const cells = row.map((value, predicted) => {
        const words = `true ${PAGE.classes[truth]}, predicted ${PAGE.classes[predicted]}: ${value}`;
        const cell = element("td", { title: words }, value > 0 ? `${Math.round(value)}` : "");
        // The square root keeps cells off the diagonal visible; 0.55 keeps the text readable.
        cell.style.backgroundColor = `rgba(${styled("--cell")}, ${0.55 * Math.sqrt(value / total)})`;
        return cell;
      });
      return element("tr", {}, element("th", { scope: "row" }, PAGE.classes[truth]), ...cells);
    });
    table.tHead.replaceChildren(element("tr", {}, corner, ...head));
    table.tBodies[0].replaceChildren(...rows);
  }

  function show() {
    const names = selects.map((select) => select.value);
    const isPair = names[0] !== names[1];
    const verdict = verdicts.find((it) => names.every((name) => it.recipes.includes(name)) && isPair);
    byId("pair-verdict").textContent = verdict ? verdict.text : "Choose two different recipes.";
    byId("pair-view").hidden = !verdict;
    if (!verdict) return;
    showClasses(names);
    showImages(byId("pair-images-a"), names[0], names[1]);
    showImages(byId("pair-images-b"), names[1], names[0]);
    showConfusion(byId("pair-confusion-a"), names[0]);
    showConfusion(byId("pair-confusion-b"), names[1]);
  }

  for (const [side, select] of selects.entries()) {
    options(select, PAGE.recipes.map((name) => [name, name]), chosen[side]);
    select.addEventListener("change", show);
  }
  onTheme(show);
  show();
})();
