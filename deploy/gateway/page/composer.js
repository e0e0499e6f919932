// The field in which messages are written.

const form = document.getElementById("composer");
const area = document.getElementById("message");

/** Call `take` with each message that is sent; it stays in the field if that returns false. */
export function whenSent(take) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (area.value.trim() && take(area.value)) put("");
  });
}

/** Give a message back, unless another one was begun. */
export function giveBack(text) {
  if (!area.value) put(text);
}

export function focus() {
  area.focus();
}

function put(text) {
  area.value = text;
  resize();
}

function resize() {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
  document.getElementById("send").disabled = !area.value.trim();
}

area.addEventListener("input", resize);
area.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});
