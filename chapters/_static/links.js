// What a term shows: Escape closes it, and under a finger the first tap shows it, the second one follows the link.
const page = document.documentElement;
const lookup = (event) => event.target.closest?.(".lookup");

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") page.classList.add("lookups-closed");
});
for (const reached of ["pointerover", "focusin"]) {
  document.addEventListener(reached, (event) => {
    if (lookup(event)) page.classList.remove("lookups-closed");
  });
}
document.addEventListener("click", (event) => {
  const link = lookup(event);
  if (link && event.pointerType === "touch" && document.activeElement !== link) {
    event.preventDefault();
    link.focus();
  }
});
