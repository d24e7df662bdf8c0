// Boxes and masks over an image.
import { element } from "/static/session.js";

const LONGEST_SIDE = 1400; // pixels of a canvas

/** Return a canvas over an image of the page, in the image's shape. */
export function overlayFor(image) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(image.naturalWidth, image.naturalHeight));
  const enlarge = Math.max(1, Math.ceil(400 / Math.max(image.naturalWidth, image.naturalHeight)));
  const canvas = element("canvas", { "aria-hidden": "true" });
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale * enlarge));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale * enlarge));
  image.after(canvas);
  return canvas;
}

/** Draw detections, {label, score, box, segmentation?} in the pixels of the image; `chosen` stands out. */
export function drawBoxes(canvas, image, size, detections, colorOf, chosen) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  const [sx, sy] = [canvas.width / size.width, canvas.height / size.height];
  const line = Math.max(2, Math.round(canvas.width / 250));
  const font = Math.max(11, Math.round(canvas.width / 38));
  context.font = `${font}px system-ui, sans-serif`;
  for (const detection of [...detections].reverse()) { // the best one is drawn last
    const faded = chosen && detection !== chosen;
    const color = colorOf(detection.label);
    const [x1, y1, x2, y2] = detection.box;
    context.globalAlpha = faded ? 0.15 : 1;
    if (detection.segmentation) drawRunLengths(context, detection.segmentation, color, canvas, faded ? 0.1 : 0.5);
    context.globalAlpha = faded ? 0.15 : 1;
    context.lineWidth = line;
    context.strokeStyle = color;
    context.strokeRect(x1 * sx, y1 * sy, (x2 - x1) * sx, (y2 - y1) * sy);
    const text = `${detection.label} ${Math.round(100 * detection.score)}`;
    const width = context.measureText(text).width + 8;
    const top = y1 * sy >= font + 6 ? y1 * sy - font - 6 : y1 * sy;
    context.fillStyle = color;
    context.fillRect(x1 * sx - line / 2, top, width, font + 6);
    context.fillStyle = "#000";
    context.fillText(text, x1 * sx + 3, top + font);
  }
  context.globalAlpha = 1;
}

/** Tint a mask of class numbers; the background is left as it is. */
export function drawClasses(canvas, picture, colors, background) {
  const part = new OffscreenCanvas(canvas.width, canvas.height);
  const context = part.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false; // a class number between two others would be a third class
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  const table = colors.map(toRgb);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const label = pixels.data[i];
    const [r, g, b] = table[label] ?? [0, 0, 0];
    pixels.data[i] = r; pixels.data[i + 1] = g; pixels.data[i + 2] = b;
    pixels.data[i + 3] = label === background || !table[label] ? 0 : 140;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function toRgb(color) {
  return [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
}

/** Draw COCO's compressed run lengths, {size: [height, width], counts}. */
function drawRunLengths(context, { size: [height, width], counts }, color, canvas, alpha) {
  const mask = new OffscreenCanvas(width, height);
  const pixels = new ImageData(width, height);
  const [r, g, b] = toRgb(color);
  let position = 0;
  runLengths(counts).forEach((length, i) => {
    for (const end = position + length; position < end; position += 1) {
      if (i % 2 === 0) continue; // runs of zeros and ones take turns, down the columns
      const at = 4 * ((position % height) * width + Math.floor(position / height));
      pixels.data[at] = r; pixels.data[at + 1] = g; pixels.data[at + 2] = b; pixels.data[at + 3] = 255;
    }
  });
  mask.getContext("2d").putImageData(pixels, 0, 0);
  context.globalAlpha = alpha;
  context.imageSmoothingEnabled = false;
  context.drawImage(mask, 0, 0, canvas.width, canvas.height);
}

/** Decode COCO's text: numbers of 5 bits a character, from the third on as differences to the number two before. */
export function runLengths(text) {
  const found = [];
  for (let i = 0; i < text.length;) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const code = text.charCodeAt(i) - 48;
      value |= (code & 31) << shift;
      more = (code & 32) !== 0;
      i += 1;
      shift += 5;
      if (!more && (code & 16) !== 0) value |= -1 << shift;
    }
    found.push(found.length > 2 ? value + found[found.length - 2] : value);
  }
  return found;
}
