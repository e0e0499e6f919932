// The form of sampling settings, kept in this browser.

const SETTINGS = "trtstream.settings";
const DEFAULTS = { temperature: "0.7", top_p: "0.95", repetition_penalty: "1.1", max_output_tokens: "512" };
const form = document.getElementById("settings");

export function show(models) {
  const kept = { ...DEFAULTS, ...JSON.parse(localStorage.getItem(SETTINGS) ?? "{}") };
  form.elements.model.replaceChildren(...models.map((model) => new Option(model.id)));
  if (!models.some((model) => model.id === kept.model)) kept.model = models[0]?.id;
  for (const [name, value] of Object.entries(kept)) if (form.elements[name]) form.elements[name].value = value;
}

/** The parameters of a request; empty fields are left to the server. */
export function parameters() {
  const values = {};
  for (const field of form.elements) {
    if (!field.name || field.value === "") continue;
    if (!field.validity.valid) {
      field.focus();
      throw new Error(`${field.labels[0].firstChild.data.trim()}: ${field.validationMessage}`);
    }
    values[field.name] = field.type === "number" ? field.valueAsNumber : field.value;
  }
  return values;
}

export function model() {
  return form.elements.model.value;
}

form.addEventListener("change", () => {
  localStorage.setItem(SETTINGS, JSON.stringify(Object.fromEntries(new FormData(form))));
});
form.addEventListener("submit", (event) => event.preventDefault());
