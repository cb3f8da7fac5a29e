// Numbers for people.

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function bytes(count) {
  let unit = 0;
  for (; count >= 999.5 && unit < UNITS.length - 1; unit++) count /= 1000;
  return `${unit && count < 9.95 ? count.toFixed(1) : Math.round(count)} ${UNITS[unit]}`;
}

/** Bytes of memory that comes in pages: in powers of two. */
export const memory = (count) =>
  count < 1 << 20 ? `${Math.round(count / 1024)} KiB` : `${(count / (1 << 20)).toFixed(count < 10 << 20 ? 1 : 0)} MiB`;

export const rate = (perSecond) => (perSecond < 9.95 ? perSecond.toFixed(1) : String(Math.round(perSecond)));

export const seconds = (count) => (count < 9.95 ? `${count.toFixed(count < 0.995 ? 2 : 1)} s` : `${Math.round(count)} s`);

export const whole = (count) => count.toLocaleString("en-US");

export const plural = (count, word) => `${whole(count)} ${word}${count === 1 ? "" : "s"}`;
