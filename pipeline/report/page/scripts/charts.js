"use strict";
// What both charts share: axes in the theme's colours, and a width that follows the page.

/** A uPlot axis in the colours of the theme. */
function axis(label, more = {}) {
  const line = { stroke: styled("--line"), width: 1 };
  const font = `12px ${getComputedStyle(document.body).fontFamily}`;
  return { label, font, labelFont: font, labelSize: 22, stroke: styled("--soft"), grid: line, ticks: line, ...more };
}

/** Draws a chart anew whenever its holder's width or the theme changes; `draw` gets width and height. */
function responsive(holder, draw) {
  let width = 0;
  const redraw = () => {
    const style = getComputedStyle(holder);
    width = holder.clientWidth - Number.parseFloat(style.paddingLeft) - Number.parseFloat(style.paddingRight);
    if (width > 0) draw(width, Math.round(Math.min(440, Math.max(300, width * 0.5))));
  };
  new ResizeObserver(() => {
    const style = getComputedStyle(holder);
    const now = holder.clientWidth - Number.parseFloat(style.paddingLeft) - Number.parseFloat(style.paddingRight);
    if (now !== width) redraw();
  }).observe(holder);
  onTheme(redraw);
  return redraw;
}
