// What the page says: errors, what is going on, and what those need to hear who do not see the screen.

import { scrollToEnd } from "./messages.js";

const box = document.getElementById("problem");
const status = document.getElementById("status");
const told = document.getElementById("told");

/** Show what went wrong, and a button that does `again`; null hides both. */
export function showProblem(problem, again) {
  box.hidden = problem === null;
  if (problem === null) return;
  box.firstElementChild.textContent = problem.message;
  box.lastElementChild.onclick = () => {
    showProblem(null);
    again();
  };
  scrollToEnd();
}

export function say(text) {
  if (status.textContent !== text) status.textContent = text;
}

/** For those who do not see the screen. */
export function tell(text) {
  told.textContent = text;
}
