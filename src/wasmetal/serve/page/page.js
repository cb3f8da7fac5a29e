// What connects the parts of the page.

import { connectChat } from "./chat.js";
import { byId, element } from "./element.js";
import { watch } from "./live.js";
import { chosenModel, connectSettings, openSettings } from "./settings.js";

const choice = byId("model");
let names = "";

function showServer(stats, error) {
  document.body.classList.toggle("away", Boolean(error));
  if (error) {
    names = "";
    choice.disabled = true;
    choice.replaceChildren(element("option", {}, error.status === 401 ? "An API key is needed" : "No connection"));
    if (error.status === 401 && !asked) openSettings("key");
    asked ||= error.status === 401;
    return;
  }
  byId("device").hidden = !stats.device;
  byId("device").textContent = stats.device?.name ?? "";
  byId("device").title = stats.device ? `${stats.device.name} (${stats.device.backend})` : "";
  const models = stats.models.filter((model) => model.kind !== "embeddings").map((model) => model.id);
  if (models.join("\n") === names) return;
  names = models.join("\n");
  const chosen = models.includes(chosenModel.get()) ? chosenModel.get() : models[0];
  choice.disabled = !models.length;
  choice.replaceChildren(...models.map((name) => element("option", { value: name }, name)));
  if (!models.length) choice.append(element("option", {}, "No model for text"));
  choice.value = chosen ?? "";
  chosenModel.set(chosen);
}

let asked = false;
connectChat();
const look = watch(showServer);
connectSettings(look);
choice.addEventListener("change", () => chosenModel.set(choice.value));
byId("composer").addEventListener("submit", () => setTimeout(look, 150));

for (const button of document.querySelectorAll("[data-show]")) {
  button.addEventListener("click", () => {
    document.body.dataset.view = button.dataset.show;
    for (const each of document.querySelectorAll("[data-show]")) each.setAttribute("aria-pressed", String(each === button));
  });
}
