"use strict";
// What the recipes' models make of a photo. The photo stays in this page.

(() => {
  const MAX_PIXELS = 64e6; // as pipeline/images/reader.py
  const zone = byId("try-zone");
  const status = byId("try-status");
  const models = new Map();
  let turn = 0; // of the images, the latest

  function modelOf({ recipe, id }) {
    if (!models.has(recipe)) {
      const bytes = Uint8Array.from(atob(byId(id).textContent.trim()), (letter) => letter.charCodeAt(0));
      models.set(recipe, readModel(bytes));
    }
    return models.get(recipe);
  }

  /** A canvas with the image upright, its colour profile not applied, on white: as `predict` reads it; and its pixels. */
  async function read(blob) {
    const as = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
    const image = await createImageBitmap(blob, as).catch(() => {
      throw new Error("your browser cannot open this file as an image; save it as PNG or JPEG");
    });
    const { width, height } = image;
    if (width * height > MAX_PIXELS) throw new Error(`the image has ${width} x ${height} pixels: save it smaller`);
    const canvas = element("canvas", { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.drawImage(image, 0, 0);
    image.close();
    const { data } = context.getImageData(0, 0, width, height);
    if (data[3] !== 255) throw new Error("your browser cannot hold so large an image: save it smaller");
    return { canvas, pixels: toModelPixels(data, width, height) };
  }

  /** The part of the image that `toModelPixels` scales down. */
  function showSquare(canvas) {
    const shown = byId("try-square");
    const side = Math.min(canvas.width, canvas.height);
    const [x, y] = [(canvas.width - side) / 2, (canvas.height - side) / 2];
    shown.getContext("2d").drawImage(canvas, x, y, side, side, 0, 0, shown.width, shown.height);
  }

  function showPixels(pixels) {
    const canvas = byId("try-pixels");
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const shown = context.createImageData(SIDE, SIDE);
    for (let index = 0; index < SIDE * SIDE; index++) {
      shown.data.set([...pixels.subarray(3 * index, 3 * index + 3), 255], 4 * index);
    }
    context.putImageData(shown, 0, 0);
    byId("try-seen").hidden = false;
  }

  function showResult(shown, probabilities, milliseconds) {
    const order = [...probabilities.keys()].toSorted((a, b) => probabilities[b] - probabilities[a]).slice(0, 3);
    const rows = order.map((index) => {
      const mark = element("i");
      mark.style.cssText = `left:0;width:${100 * probabilities[index]}%;background:${colourOf(shown.recipe)}`;
      const bar = element("span", { class: "bar", "aria-hidden": "true" }, mark);
      const numbers = element("span", { class: "number" }, `${percent(probabilities[index], 1)} %`);
      return element("li", {}, element("span", {}, PAGE.classes[index]), numbers, bar);
    });
    const time = element("p", { class: "note" }, `${shown.run}, ${milliseconds.toFixed(0)} ms`);
    const parts = [element("h3", {}, shown.recipe), time, element("ol", {}, ...rows)];
    byId("try-results").append(element("article", { "data-recipe": shown.recipe }, ...parts));
    return `${shown.recipe}: ${PAGE.classes[order[0]]}, ${percent(probabilities[order[0]], 1)} %`;
  }

  /** Shows what one model answers, or why it does not; returns it as a clause. */
  function run(shown, pixels) {
    try {
      const model = modelOf(shown);
      const probabilities = model(pixels); // the first run compiles
      const times = [0, 1, 2].map(() => {
        const started = performance.now();
        model(pixels);
        return performance.now() - started;
      });
      return showResult(shown, probabilities, times.toSorted((a, b) => a - b)[1]);
    } catch (error) {
      return `${shown.recipe} cannot run in this page (${error.message})`;
    }
  }

  async function classify(blob) {
    turn += 1;
    const mine = turn;
    const holder = byId("try-answer");
    holder.setAttribute("aria-busy", "true");
    byId("try-results").replaceChildren();
    byId("try-seen").hidden = true;
    status.textContent = "Reading the image …";
    try {
      const { canvas, pixels } = await read(blob);
      const said = [];
      for (const shown of PAGE.models) {
        if (mine !== turn) return; // a later image took its place
        if (said.length === 0) {
          showSquare(canvas);
          showPixels(pixels);
        }
        said.push(run(shown, pixels));
        // oxlint-disable-next-line no-await-in-loop -- lets the browser draw between two models
        await new Promise((resolve) => setTimeout(resolve));
      }
      if (mine === turn) status.textContent = `${said.join("; ")}.`;
    } catch (error) {
      if (mine === turn) status.textContent = `That did not work: ${error.message}.`;
    }
    if (mine === turn) holder.setAttribute("aria-busy", "false");
  }

  function take(transfer) {
    const file = [...transfer.files].find((it) => it.type.startsWith("image/")) ?? transfer.files[0];
    if (file) classify(file);
    else status.textContent = "There is no file in what was dropped or pasted: save the image, and choose the file.";
  }

  for (const id of ["try-file", "try-camera"]) {
    byId(id).addEventListener("change", (event) => {
      if (event.target.files[0]) classify(event.target.files[0]);
      event.target.value = ""; // so that the same file can be chosen again
    });
  }
  for (const kind of ["dragenter", "dragover"]) {
    zone.addEventListener(kind, (event) => {
      event.preventDefault();
      zone.classList.add("over");
    });
  }
  for (const kind of ["dragleave", "drop"]) zone.addEventListener(kind, () => zone.classList.remove("over"));
  // A file that misses the zone would replace the page.
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    take(event.dataTransfer);
  });
  addEventListener("paste", (event) => {
    if (event.clipboardData.files.length > 0) take(event.clipboardData);
  });
  for (const button of document.querySelectorAll("#try-examples button")) {
    button.addEventListener("click", () => {
      const [, encoded] = button.querySelector("img").src.split(",");
      const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
      classify(new Blob([bytes], { type: "image/png" }));
    });
  }
})();
