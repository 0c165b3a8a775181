"use strict";
// What the page shows, and what every section uses.

const PAGE = JSON.parse(document.getElementById("content").textContent);

/** An element with attributes and children; `on…` attributes are listeners. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

const byId = (id) => document.getElementById(id);
const percent = (fraction, digits = 2) => (100 * fraction).toFixed(digits);

/** A variable of the style sheet, as the theme of the moment has it. */
const styled = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A recipe's colour; published results have none. */
function colourOf(name) {
  const index = PAGE.recipes.indexOf(name);
  return styled(index < 0 ? "--published" : `--series-${index % 10}`);
}

/** Calls back when the theme changes. */
function onTheme(callback) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", callback);
}

/** Fills a select with pairs of a value and a label. */
function options(select, pairs, chosen) {
  select.replaceChildren(
    ...pairs.map(([value, label]) => element("option", { value, selected: value === chosen }, label)),
  );
}
