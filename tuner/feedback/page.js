// Keys: digits choose, Enter submits, letters are the other buttons. In a box of text they write; Ctrl+Enter submits.
const press = (id) => {
  const button = document.getElementById(id);
  if (button?.offsetParent) button.click();
};
const LETTERS = { u: () => press("undo"), s: () => press("skip"), e: () => document.querySelector("#edit textarea")?.focus() };

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.repeat || event.altKey) return;
  const held = event.ctrlKey || event.metaKey;
  const writes = event.target.matches("textarea, input:not([type=radio])");
  if (writes && event.key === "Escape") event.target.blur();
  if (event.key === "Enter" ? writes !== held || event.target.matches("button, a") : writes || held) return;
  if (event.key === "Enter") press("submit");
  else if (/^[1-4]$/.test(event.key)) document.querySelectorAll("#choice input")[event.key - 1]?.click();
  else if (LETTERS[event.key]) LETTERS[event.key]();
  else return;
  event.preventDefault();
});

document.addEventListener("click", (event) => {
  const card = event.target.closest("#a, #b");
  if (card && !String(getSelection())) document.querySelectorAll("#choice input")[card.id === "a" ? 0 : 1]?.click();
  if (event.target.closest("#submit, #skip, #undo")) scrollTo(0, 0);
  // A button that keeps the focus would take the next Enter for itself.
  if (event.detail && event.target.closest("button")) document.activeElement.blur();
});
