// Runs before the first paint, so that the page does not flash in the wrong colours. "auto" follows the system.
(() => {
  let theme = null;
  try { theme = localStorage.getItem('stoker-theme'); } catch { /* storage may be forbidden: follow the system */ }
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
})();
