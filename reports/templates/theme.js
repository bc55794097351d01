// Before anything is painted: the reader's choice, else the system's.
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("flatsat-theme"); } catch { /* storage may be closed to files */ }
  const show = (theme) => { document.documentElement.dataset.theme = theme; };
  show(chosen ?? (system.matches ? "dark" : "light"));
  system.addEventListener("change", () => {
    if (chosen === null) { show(system.matches ? "dark" : "light"); dispatchEvent(new Event("theme")); }
  });
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const say = () => {
      const dark = document.documentElement.dataset.theme === "dark";
      button.setAttribute("aria-pressed", String(dark));
      button.textContent = dark ? "Light" : "Dark";
    };
    button.addEventListener("click", () => {
      chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      try { localStorage.setItem("flatsat-theme", chosen); } catch { /* forgotten then */ }
      show(chosen);
      say();
      dispatchEvent(new Event("theme"));
    });
    addEventListener("theme", say);
    say();
  });
})();
