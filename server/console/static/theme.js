// Runs before the first paint, so that a chosen theme does not flash. Nothing chosen: as the system says.
(() => {
  const chosen = localStorage.getItem("kedge-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
