/** Turns an image file into the data: URL that the server reads. */

const MAX_BYTES = 3_000_000;
const MAX_SIDE = 1600;

/** Returns `file` as a data: URL; a photo too large for one request is scaled down first. */
export async function readImage(file) {
  if (!file.type.startsWith("image/")) throw new Error("This file is not an image.");
  return file.size <= MAX_BYTES ? asUrl(file) : asUrl(await scaledDown(file));
}

function asUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(new Error("This file cannot be read.")));
    reader.readAsDataURL(blob);
  });
}

async function scaledDown(file) {
  const image = await createImageBitmap(file).catch(() => {
    throw new Error("This image cannot be decoded.");
  });
  const scale = Math.min(1, MAX_SIDE / Math.max(image.width, image.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}
