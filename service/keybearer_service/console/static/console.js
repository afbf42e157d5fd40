// Everything works without this script. It makes panels modal dialogs, lets a form be sent once,
// writes times in the reader's own zone, and forgets a secret that was shown.
"use strict";

// --- times ------------------------------------------------------------------------------------

const whole = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
for (const time of document.querySelectorAll("time[datetime]")) {
  const text = whole.format(new Date(time.dateTime));
  if (time.hasAttribute("data-whole")) time.textContent = text;
  time.title = text;
}

// --- dialogs ----------------------------------------------------------------------------------

const dialog = document.querySelector("dialog[data-modal]");
const closing = dialog?.querySelector("[data-close]");
if (dialog) {
  const isLocked = dialog.dataset.modal === "locked";
  const leave = () => { if (closing) location.assign(closing.href); };
  const open = () => {
    dialog.removeAttribute("open");
    dialog.showModal();
    dialog.querySelector("[autofocus]")?.focus();
  };
  dialog.addEventListener("cancel", (event) => {
    event.preventDefault();
    if (!isLocked) leave();
  });
  // A browser may close a dialog although it was asked not to.
  dialog.addEventListener("close", () => { if (isLocked) open(); else leave(); });
  if (dialog.dataset.modal === "light") {
    dialog.addEventListener("click", (event) => {
      const box = dialog.getBoundingClientRect();
      const isInside = event.clientX >= box.left && event.clientX <= box.right
        && event.clientY >= box.top && event.clientY <= box.bottom;
      if (event.target === dialog && !isInside) leave();
    });
  }
  open();
}

// --- forms ------------------------------------------------------------------------------------

for (const form of document.querySelectorAll("form[data-once]")) {
  let isSent = false;
  form.addEventListener("submit", (event) => {
    if (isSent) { event.preventDefault(); return; }
    isSent = true;
    form.querySelector("button.primary, button.danger")?.setAttribute("aria-disabled", "true");
  });
  // A page that comes back from the browser's memory may be sent again; the server answers once.
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    isSent = false;
    form.querySelector("[aria-disabled]")?.removeAttribute("aria-disabled");
  });
  const show = () => {
    const chosen = (name) => form.querySelector(`input[name="${name}"]:checked`)?.value;
    for (const part of form.querySelectorAll("[data-not-for]")) {
      part.hidden = chosen("role") === part.dataset.notFor && !part.querySelector("input").value;
    }
    for (const part of form.querySelectorAll("[data-only-for]")) {
      part.hidden = chosen("expires") !== part.dataset.onlyFor;
    }
  };
  form.addEventListener("change", show);
  show();
}

// --- an invitation ----------------------------------------------------------------------------

const invitation = document.querySelector("form[data-invitation]");
if (invitation && location.hash.length > 1) {
  invitation.querySelector("input").value = location.hash.slice(1);
  history.replaceState(null, "", location.pathname);
  invitation.requestSubmit();
}

// --- the secret -------------------------------------------------------------------------------

const token = document.getElementById("token");
if (dialog?.dataset.shown && token) {
  // Back, Reload and a copy of the tab lead to the details of the key, which show no secret.
  history.replaceState(null, "", dialog.dataset.shown);
  const copied = document.getElementById("copied");
  const otherWay = document.getElementById("other-way");
  const box = otherWay.querySelector("input");
  let isSaved = false;
  const saved = (text) => {
    isSaved = true;
    box.required = false;
    otherWay.hidden = true;
    copied.classList.remove("failed");
    copied.textContent = text;
  };
  box.addEventListener("change", () => { isSaved = box.checked; });
  const copy = document.getElementById("copy");
  copy.hidden = false;
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(token.textContent);
      saved("Copied. Paste it now where it belongs, such as your password manager or secret store.");
    } catch {
      getSelection().selectAllChildren(token);
      copied.classList.add("failed");
      copied.textContent = "The browser did not let it be copied. It is selected: copy it by hand.";
    }
  });
  const download = document.getElementById("download");
  if (download) download.hidden = false;
  download?.addEventListener("click", () => {
    const file = new Blob([`${token.textContent}\n`], { type: "text/plain" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = download.dataset.name;
    link.click();
    URL.revokeObjectURL(link.href);
    saved("Saved as a file. Let only yourself read it, or move it into a secret store.");
  });
  addEventListener("beforeunload", (event) => { if (!isSaved) event.preventDefault(); });
  dialog.querySelector("form").addEventListener("submit", () => { isSaved = true; });
  addEventListener("pagehide", () => { token.textContent = ""; });
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
}
