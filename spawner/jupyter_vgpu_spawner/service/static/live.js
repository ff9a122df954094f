// The GPUs' bars follow by themselves; without JavaScript a reload shows the same.
const live = document.getElementById("vgpu-live");

async function refresh() {
  if (document.visibilityState === "visible") {
    try {
      // where the login is over the answer is a way to it, which is the page's to go, not this look's
      const answer = await fetch(live.dataset.url, {
        headers: { "X-XSRFToken": live.dataset.xsrf },
        redirect: "error",
      });
      if (answer.ok) {
        live.innerHTML = await answer.text();
      }
    } catch {
      // the hub is away for a moment; the next look tells
    }
  }
  setTimeout(refresh, 2000);
}

setTimeout(refresh, 2000);
