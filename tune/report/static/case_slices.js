// Volumes from pictures, their slices, and contours of what is in a slice. Used by case_viewer.js.
const CODE_STEP = 16; // as in volumes.py: between the grey levels of the codes in a picture of labels

// Return the grey levels of a picture's tiles as a volume, x fastest.
async function decode(uri, [width, height, depth], columns) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const volume = new Uint8Array(width * height * depth);
  let voxel = 0;
  for (let z = 0; z < depth; z++) {
    const left = (z % columns) * width;
    const top = Math.floor(z / columns) * height;
    for (let y = 0; y < height; y++) {
      let pixel = 4 * ((top + y) * canvas.width + left);
      for (let x = 0; x < width; x++, pixel += 4) volume[voxel++] = pixels[pixel];
    }
  }
  return volume;
}

// Return the codes in a picture of labels. Throws if the browser has changed what a canvas reads.
function codesOf(volume) {
  for (let i = 0; i < volume.length; i++) {
    const code = Math.round(volume[i] / CODE_STEP);
    if (Math.abs(volume[i] - CODE_STEP * code) > 2) throw new Error("a canvas does not read what was drawn");
    volume[i] = code;
  }
  return volume;
}

// Return a slice of a volume as rows of pixels: {values, width, height}.
function sliceOf(volume, shape, plane, index) {
  const strides = [1, shape[0], shape[0] * shape[1]];
  const [width, height] = [shape[plane.across], shape[plane.down]];
  const values = new Uint8Array(width * height);
  for (let row = 0; row < height; row++) {
    const down = plane.upwards ? height - 1 - row : row;
    let voxel = index * strides[plane.through] + down * strides[plane.down];
    for (let column = 0; column < width; column++, voxel += strides[plane.across]) {
      values[row * width + column] = volume[voxel];
    }
  }
  return { values, width, height };
}

// Return the closed contours around the pixels that are inside, through the middles of their border edges.
function contoursOf({ values, width, height }, isInside) {
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && isInside(values[y * width + x]);
  const following = new Map(); // corner -> the corners that edges lead to from there, with the inside on the right
  const corner = (x, y) => y * (width + 1) + x;
  const add = (from, to) => (following.has(from) ? following.get(from).push(to) : following.set(from, [to]));
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!inside(x, y)) continue;
      if (!inside(x, y - 1)) add(corner(x, y), corner(x + 1, y));
      if (!inside(x + 1, y)) add(corner(x + 1, y), corner(x + 1, y + 1));
      if (!inside(x, y + 1)) add(corner(x + 1, y + 1), corner(x, y + 1));
      if (!inside(x - 1, y)) add(corner(x, y + 1), corner(x, y));
    }
  }
  const contours = [];
  for (const start of following.keys()) {
    const contour = [];
    let from = start;
    while (following.has(from)) {
      const list = following.get(from);
      const to = list.pop();
      if (!list.length) following.delete(from);
      const [x0, y0] = [from % (width + 1), Math.floor(from / (width + 1))];
      const [x1, y1] = [to % (width + 1), Math.floor(to / (width + 1))];
      contour.push([(x0 + x1) / 2, (y0 + y1) / 2]);
      from = to;
    }
    if (contour.length) contours.push(contour);
  }
  return contours;
}

function pathOf(contours, scaleX, scaleY) {
  const path = new Path2D();
  for (const contour of contours) {
    contour.forEach(([x, y], i) => (i ? path.lineTo(x * scaleX, y * scaleY) : path.moveTo(x * scaleX, y * scaleY)));
    path.closePath();
  }
  return path;
}
