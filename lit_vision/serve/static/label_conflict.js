// Two browsers answered the same image: the other's answer is shown, and it is asked which one counts.
import { element } from "/static/session.js";
import { textOf } from "/static/label_recent.js";

const by = (id) => document.getElementById(id);

/** Ask whose answer counts; return true for that of this browser. */
export function useMine(body, theirs) {
  const who = theirs.annotator ? ` by ${theirs.annotator}` : "";
  by("conflict-text").textContent = `${body.path} has got the answer “${textOf(theirs)}”${who}. Yours is “${textOf(body)}”.`;
  const picture = element("img", { alt: body.path });
  picture.src = `/v1/label/images/${body.number}?side=256`;
  by("conflict-picture").replaceChildren(picture);
  by("keep-theirs").textContent = `Keep ${textOf(theirs)}`;
  by("use-mine").textContent = `Use ${textOf(body)}`;
  const dialog = by("conflict");
  dialog.oncancel = (event) => event.preventDefault();
  dialog.showModal();
  return new Promise((done) => {
    by("keep-theirs").onclick = () => { dialog.close(); done(false); };
    by("use-mine").onclick = () => { dialog.close(); done(true); };
  });
}
