// Scrolls through the cases of a report: three planes of a volume, with truth, prediction and errors drawn on them.
// All volumes are in the page: WebP pictures of axial slices side by side (tune/report/volumes.py), read by a canvas.
const REGIONS = ["WT", "TC", "ET"]; // a voxel of level 1 is in WT, of 2 in TC too, of 3 in all
// The axes of the volume (0 left, 1 posterior, 2 superior) that run across, down and through each plane.
const PLANES = {
  axial: { across: 0, down: 1, through: 2, upwards: false },
  coronal: { across: 0, down: 2, through: 1, upwards: true },
  sagittal: { across: 1, down: 2, through: 0, upwards: true },
};
const AXES = ["x", "y", "z"];
const MODALITY_KEYS = ["1", "2", "3", "4"];
const OVERLAY_KEYS = { t: "truth", p: "prediction", e: "errors", x: "crosshair" };

class Viewer {
  constructor(root) {
    this.root = root;
    this.cases = JSON.parse(root.querySelector(".case-data").textContent);
    this.volumes = new Map(); // "case modality" -> promise of a volume
    this.interactive = root.querySelector(".case-interactive");
    this.figures = [...root.querySelectorAll(".case-planes figure")];
    this.at = null; // the crosshair, indices of a voxel
    this.listen();
    root.classList.add("case-ready");
    this.interactive.hidden = false;
    // Volumes are decoded when the viewer is first seen: a report is often read for its tables alone.
    new IntersectionObserver((entries, observer) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      this.show(true);
    }, { rootMargin: "200px" }).observe(this.interactive);
  }

  chosen(name) {
    return this.root.querySelector(`input[name="${this.root.id}-${name}"]:checked`).value;
  }

  isOn(value) {
    return this.interactive.querySelector(`input[type=checkbox][value=${value}]`).checked;
  }

  volume(number, name) {
    const key = `${number} ${name}`;
    if (!this.volumes.has(key)) {
      const { shape, columns, labels, modalities } = this.cases[number];
      const decoded = decode(name === "labels" ? labels : modalities[name], shape, columns);
      this.volumes.set(key, name === "labels" ? decoded.then(codesOf) : decoded);
    }
    return this.volumes.get(key);
  }

  // Decode what is chosen and draw it. isNew: another case, whose largest error is gone to.
  async show(isNew) {
    const number = Number(this.chosen("case"));
    const modality = this.chosen("modality");
    this.interactive.setAttribute("aria-busy", "true");
    try {
      const [codes, grey] = await Promise.all([this.volume(number, "labels"), this.volume(number, modality)]);
      if (number !== Number(this.chosen("case")) || modality !== this.chosen("modality")) return; // chosen meanwhile
      Object.assign(this, { case: this.cases[number], codes, grey });
    } catch (error) {
      this.interactive.hidden = true;
      this.root.querySelector(".case-failed").hidden = false;
      this.root.classList.remove("case-ready");
      return;
    }
    if (isNew || !this.at) {
      this.at = [...this.case.start];
      this.fit();
    }
    this.draw();
    this.interactive.setAttribute("aria-busy", "false");
  }

  // Give each plane the width of its own mm, so that all are at one scale, and its slider the number of slices.
  fit() {
    const { shape, mm } = this.case;
    const size = (axis) => shape[axis] * mm[axis];
    const planes = this.root.querySelector(".case-planes");
    const columns = this.figures.map((figure) => `${size(PLANES[figure.dataset.plane].across)}fr`);
    planes.style.setProperty("--case-columns", columns.join(" "));
    for (const figure of this.figures) {
      const plane = PLANES[figure.dataset.plane];
      figure.querySelector("canvas").style.aspectRatio = `${size(plane.across)} / ${size(plane.down)}`;
      figure.querySelector("input").max = shape[plane.through];
    }
  }

  draw() {
    if (!this.case) return;
    const style = getComputedStyle(this.root);
    this.colours = Object.fromEntries(
      [...REGIONS, "missed", "added"].map((name) => [name, style.getPropertyValue(`--case-${name}`).trim()]),
    );
    for (const figure of this.figures) if (figure.offsetWidth) this.drawPlane(figure);
  }

  drawPlane(figure) {
    const plane = PLANES[figure.dataset.plane];
    const canvas = figure.querySelector("canvas");
    const { shape } = this.case;
    const index = this.at[plane.through];
    const grey = sliceOf(this.grey, shape, plane, index);
    const codes = sliceOf(this.codes, shape, plane, index);
    const pixels = window.devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * pixels);
    canvas.height = Math.round(canvas.clientHeight * pixels);
    const context = canvas.getContext("2d");
    this.drawGrey(context, grey);
    const scale = [canvas.width / grey.width, canvas.height / grey.height];
    if (this.isOn("errors")) this.drawErrors(context, codes, scale, pixels);
    this.drawOutlines(context, codes, scale, pixels);
    if (this.isOn("crosshair")) this.drawCrosshair(context, plane, grey, scale, pixels);
    this.describe(figure, plane, index);
  }

  drawGrey(context, { values, width, height }) {
    const image = new ImageData(width, height);
    for (let i = 0; i < values.length; i++) {
      image.data[4 * i] = image.data[4 * i + 1] = image.data[4 * i + 2] = values[i];
      image.data[4 * i + 3] = 255;
    }
    const small = document.createElement("canvas");
    small.width = width;
    small.height = height;
    small.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingQuality = "high";
    context.drawImage(small, 0, 0, context.canvas.width, context.canvas.height);
  }

  drawOutlines(context, codes, scale, pixels) {
    REGIONS.forEach((region, i) => {
      if (!this.isOn(region)) return;
      context.strokeStyle = this.colours[region];
      if (this.isOn("truth")) {
        context.setLineDash([]);
        context.lineWidth = 1.25 * pixels;
        context.stroke(pathOf(contoursOf(codes, (code) => code % 4 > i), ...scale));
      }
      if (this.isOn("prediction")) {
        // Wider than the truth, so that the dashes are seen on it where the two lie on each other.
        context.setLineDash([4 * pixels, 4 * pixels]);
        context.lineWidth = 3 * pixels;
        context.stroke(pathOf(contoursOf(codes, (code) => code >> 2 > i), ...scale));
      }
    });
  }

  // A voxel is missed if a region that is shown has it in the truth alone, added if in the prediction alone.
  drawErrors(context, codes, scale, pixels) {
    const shown = REGIONS.map((region, i) => i).filter((i) => this.isOn(REGIONS[i]));
    const count = (level) => shown.filter((i) => level > i).length;
    const missed = pathOf(contoursOf(codes, (code) => count(code % 4) > count(code >> 2)), ...scale);
    const added = pathOf(contoursOf(codes, (code) => count(code % 4) < count(code >> 2)), ...scale);
    context.globalAlpha = 0.6;
    context.fillStyle = this.colours.added;
    context.fill(added, "evenodd");
    context.globalAlpha = 0.9;
    context.fillStyle = context.createPattern(this.hatching(pixels), "repeat");
    context.fill(missed, "evenodd");
    context.globalAlpha = 1;
  }

  hatching(pixels) {
    const size = Math.round(6 * pixels);
    const tile = document.createElement("canvas");
    tile.width = tile.height = size;
    const context = tile.getContext("2d");
    context.strokeStyle = this.colours.missed;
    context.lineWidth = 2 * pixels;
    for (const shift of [-size, 0, size]) {
      context.moveTo(shift, size);
      context.lineTo(shift + size, 0);
    }
    context.stroke();
    return tile;
  }

  drawCrosshair(context, plane, { width, height }, scale, pixels) {
    const down = this.at[plane.down];
    const x = (this.at[plane.across] + 0.5) * scale[0];
    const y = ((plane.upwards ? height - 1 - down : down) + 0.5) * scale[1];
    const gap = 10 * pixels; // around the voxel, which stays free
    context.setLineDash([]);
    context.lineWidth = pixels;
    context.strokeStyle = "rgba(255, 255, 255, 0.45)";
    context.beginPath();
    for (const [from, to] of [[0, x - gap], [x + gap, width * scale[0]]]) {
      context.moveTo(from, y);
      context.lineTo(Math.max(from, to), y);
    }
    for (const [from, to] of [[0, y - gap], [y + gap, height * scale[1]]]) {
      context.moveTo(x, from);
      context.lineTo(x, Math.max(from, to));
    }
    context.stroke();
  }

  describe(figure, plane, index) {
    const row = this.case.affine[plane.through];
    const mm = row[0] * this.at[0] + row[1] * this.at[1] + row[2] * this.at[2] + row[3];
    const position = `${AXES[plane.through]} = ${mm.toFixed(mm % 1 ? 1 : 0)} mm`;
    const text = `${figure.dataset.plane} slice ${index + 1} of ${this.case.shape[plane.through]}, ${position}`;
    const slider = figure.querySelector("input");
    slider.value = index + 1;
    slider.setAttribute("aria-valuetext", text);
    const overlays = ["truth", "prediction", "errors"].filter((name) => this.isOn(name)).join(", ") || "no overlay";
    figure.querySelector("canvas").setAttribute("aria-label", `${text}; ${overlays}`);
    figure.querySelector("figcaption").textContent = text;
  }

  move(axis, index) {
    this.at[axis] = Math.min(Math.max(index, 0), this.case.shape[axis] - 1);
    this.draw();
  }

  listen() {
    this.root.addEventListener("keydown", (event) => this.press(event));
    this.root.addEventListener("change", (event) => {
      const name = event.target.name || "";
      if (name.endsWith("-plane")) this.root.querySelector(".case-planes").dataset.plane = event.target.value;
      if (event.target.type === "radio" && !name.endsWith("-plane")) this.show(name.endsWith("-case"));
      else this.draw();
    });
    for (const figure of this.figures) this.listenTo(figure, PLANES[figure.dataset.plane]);
    new ResizeObserver(() => this.draw()).observe(this.interactive);
  }

  listenTo(figure, plane) {
    const slider = figure.querySelector("input");
    const canvas = figure.querySelector("canvas");
    slider.addEventListener("input", () => this.case && this.move(plane.through, Number(slider.value) - 1));
    canvas.addEventListener("pointerdown", (event) => {
      if (!this.case) return;
      this.goTo(event, canvas, plane);
      event.preventDefault(); // or the click would take the focus from the slider again
      slider.focus({ preventScroll: true });
    });
    canvas.addEventListener("pointermove", (event) => {
      if (this.case && event.pointerType === "mouse" && event.buttons === 1) this.goTo(event, canvas, plane);
    });
    // Only the plane in use takes the wheel, so that a page scrolls on when the pointer comes over a picture.
    figure.addEventListener("wheel", (event) => {
      if (!this.case || !figure.contains(document.activeElement)) return;
      event.preventDefault();
      this.move(plane.through, this.at[plane.through] - Math.sign(event.deltaY));
    }, { passive: false });
  }

  // Move the crosshair to where the pointer is in a picture.
  goTo(event, canvas, plane) {
    const [width, height] = [this.case.shape[plane.across], this.case.shape[plane.down]];
    const row = Math.floor((event.offsetY / canvas.clientHeight) * height);
    const column = Math.floor((event.offsetX / canvas.clientWidth) * width);
    this.at[plane.across] = Math.min(Math.max(column, 0), width - 1);
    this.move(plane.down, plane.upwards ? height - 1 - row : row);
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const number = MODALITY_KEYS.indexOf(event.key);
    if (number >= 0) this.choose("modality", number);
    else if (event.key === "c") this.choose("case", null);
    else if (OVERLAY_KEYS[event.key]) {
      this.interactive.querySelector(`input[value=${OVERLAY_KEYS[event.key]}]`).click();
    } else return;
    event.preventDefault();
  }

  // Choose a radio button by its number, null for the one after the chosen one.
  choose(name, number) {
    const buttons = [...this.root.querySelectorAll(`input[name="${this.root.id}-${name}"]`)];
    const next = number ?? (buttons.findIndex((button) => button.checked) + 1) % buttons.length;
    if (buttons[next] && !buttons[next].checked) buttons[next].click();
  }
}

for (const root of document.querySelectorAll(".case-viewer:not(.case-ready)")) {
  if (root.querySelector(".case-data")) new Viewer(root);
}
