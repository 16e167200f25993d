/** From a picture's file to the data: URL that the server reads. */

const LARGEST = 3_000_000;
const SIDE = 1600;

/** Returns `file` as a data: URL; a photo too large for one request is made smaller first. */
export async function readPicture(file) {
  if (!file.type.startsWith("image/")) throw new Error("This file is not a picture.");
  return file.size <= LARGEST ? asUrl(file) : asUrl(await smaller(file));
}

function asUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(new Error("This file cannot be read.")));
    reader.readAsDataURL(blob);
  });
}

async function smaller(file) {
  const image = await createImageBitmap(file).catch(() => {
    throw new Error("This picture cannot be decoded.");
  });
  const scale = Math.min(1, SIDE / Math.max(image.width, image.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}
