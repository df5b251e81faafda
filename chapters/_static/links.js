// What a term shows: Escape closes it; a finger's first tap shows it, and the second one follows the link.
{
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
  let tapped = null;
  document.addEventListener("click", (event) => {
    const first = lookup(event) !== tapped;
    tapped = lookup(event);
    if (tapped && first && event.pointerType === "touch") event.preventDefault();
  });
}
