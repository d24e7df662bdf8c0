// Signing in, and requests to the server. All pages use it.

// The token stands behind # in the link that the command printed. It is sent once and taken out of the address.
const linked = new URLSearchParams(location.hash.slice(1)).get("token");
if (linked) history.replaceState(null, "", location.pathname + location.search);
let ready = linked ? signIn(linked) : Promise.resolve(true);

async function signIn(token) {
  const answer = await fetch("/session", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ token }),
  });
  return answer.ok;
}

/** Ask for the token in a dialog until it is right. */
function askForToken() {
  const dialog = element("dialog", {});
  const form = element("form", {});
  const input = element("input", { type: "password", id: "token", autocomplete: "off", required: "" });
  const note = element("p", { class: "bad", role: "alert" });
  form.append(
    element("h3", {}, "This server asks for a token"),
    element("label", { for: "token" }, "Open the link that the command printed, or paste it here."),
    input, note, element("button", { class: "primary" }, "Sign in"),
  );
  dialog.append(form);
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((done) => {
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const text = input.value.trim();
      if (await signIn(text.includes("#token=") ? text.split("#token=")[1] : text)) {
        dialog.remove();
        done(true);
      } else {
        note.textContent = "That is not this server's token.";
        input.select();
      }
    });
  });
}

/** Return an element with attributes and text; the text is never read as HTML. */
export function element(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

/**
 * Send a request; return the answer's JSON, or its image as a Blob. Signs in where it must, and tries again when the server is busy.
 * An answer that is an error is thrown with its `status` and `content`; without a status, no answer came.
 */
export async function api(path, options = {}, tries = 20) {
  await ready;
  const answer = await fetch(path, options);
  if (answer.status === 401) {
    ready = askForTokenOnce();
    return api(path, options, tries);
  }
  if (answer.status === 503 && tries > 0) {
    const seconds = Number(answer.headers.get("Retry-After")) || 1;
    await new Promise((done) => setTimeout(done, 1000 * seconds * (0.5 + Math.random())));
    return api(path, options, tries - 1);
  }
  if (answer.ok && answer.headers.get("Content-Type") === "image/png") return answer.blob();
  const content = await answer.json();
  if (content.error) throw Object.assign(new Error(content.error), { status: answer.status, content });
  return content;
}

let asking = null;
function askForTokenOnce() {
  asking ??= askForToken().finally(() => { asking = null; });
  return asking;
}
