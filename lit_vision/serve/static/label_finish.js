// The end: the files that are written, and the command that uses them.
import { element } from "/static/session.js";
import { post } from "/static/label_outbox.js";

const by = (id) => document.getElementById(id);
const SECONDS = 600; // a model of many labels may take its time

export function setUpFinish() {
  by("finish").addEventListener("click", async () => {
    by("finish").disabled = true;
    by("finish-note").className = "faint";
    by("finish-note").textContent = "Writing";
    try {
      const { files, lines, next } = await post("/v1/label/finish", {}, SECONDS);
      by("files").replaceChildren(...(lines ?? files).map((line) => element("li", {}, line)));
      by("next").textContent = next;
      by("finished").hidden = false;
      by("go-on").hidden = !next;
      by("copy").textContent = "Copy";
      by("finish-note").textContent = "Written:";
    } catch (error) {
      by("finish-note").className = "bad";
      by("finish-note").textContent = error.status ? error.message : "The server does not answer; try again.";
    } finally {
      by("finish").disabled = false;
    }
  });
  by("copy").hidden = !navigator.clipboard; // pages from another machine without TLS have none
  by("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(by("next").textContent);
    by("copy").textContent = "Copied";
  });
}
