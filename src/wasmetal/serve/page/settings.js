// The settings: a dialog, and what is kept of it in this browser.

import { key } from "./api.js";
import { byId } from "./element.js";

const KEPT = "wasmetal.settings";
const DEFAULTS = { system: "", temperature: "0.7", top_p: "0.95", max_tokens: "", seed: "" };
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

let current = { ...DEFAULTS, ...read() };

function read() {
  try {
    return JSON.parse(localStorage.getItem(KEPT)) ?? {};
  } catch {
    return {};
  }
}

/** What of it goes into the body of a request: numbers that are there. */
export function sampling() {
  const there = NUMBERS.filter((name) => current[name] !== "" && Number.isFinite(Number(current[name])));
  return Object.fromEntries(there.map((name) => [name, Number(current[name])]));
}

export const system = () => current.system.trim();

export const chosenModel = {
  get: () => current.model,
  set: (name) => keep({ model: name }),
};

function keep(changes) {
  current = { ...current, ...changes };
  localStorage.setItem(KEPT, JSON.stringify(current));
}

function show() {
  for (const name of Object.keys(DEFAULTS)) byId(name).value = current[name];
  byId("key").value = key.get();
}

export function openSettings(field) {
  show();
  byId("settings").showModal();
  if (field) byId(field).focus();
}

/** Connect the dialog. `changed` is called when it has been closed. */
export function connectSettings(changed) {
  const dialog = byId("settings");
  byId("open-settings").addEventListener("click", () => openSettings());
  byId("reset").addEventListener("click", () => {
    keep(DEFAULTS);
    show();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
  dialog.addEventListener("close", () => {
    for (const name of Object.keys(DEFAULTS)) if (byId(name).validity.valid) keep({ [name]: byId(name).value });
    key.set(byId("key").value.trim());
    changed();
  });
}
