/** Formats numbers for people. */

const whole = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** 1234 → "1,234". */
export const count = (number) => whole.format(number);

/** 1234567 → "1.2M"; small numbers stay as they are. */
export const short = (number) => (number < 10_000 ? whole.format(number) : compact.format(number));

/** Three digits: 1340000 → "1.34 MB". */
export function bytes(number) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (number >= 1000 && unit < units.length - 1) {
    number /= 1000;
    unit += 1;
  }
  return `${unit ? figures(number) : number} ${units[unit]}`;
}

/** Milliseconds: 7.31 → "7.3 ms", 1234 → "1.23 s", 3000 → "3 s". */
export function milliseconds(number) {
  if (number >= 1000 && number % 1000 === 0) return `${number / 1000} s`;
  if (number < 1000 && Number.isInteger(number)) return `${number} ms`;
  if (number >= 1000) return `${figures(number / 1000)} s`;
  return `${number >= 100 ? Math.round(number) : number.toFixed(number >= 10 ? 0 : 1)} ms`;
}

/** 0.9184 → "91.8%"; a share that is not exactly 0 or 1 never looks like it. */
export function percent(share) {
  if (share > 0 && share < 0.001) return "<0.1%";
  if (share < 1 && share > 0.999) return ">99.9%";
  return `${(share * 100).toFixed(1)}%`;
}

const digits = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

/** A number of any size: 3.27154 → "3.272", 0.0000123 → "0.0000123". */
export const amount = (number) => digits.format(number);

/** A rate: 3.5 → "3.5", 1234.5 → "1,235". */
export const rate = (number) => (number < 10 ? String(Math.round(number * 10) / 10) : whole.format(Math.round(number)));

/** "1 model", "2 models". */
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

function figures(number) {
  return number.toFixed(number >= 100 ? 0 : number >= 10 ? 1 : 2);
}
