// The page of the API: everything on it is read from openapi.json.
import { element } from "/static/session.js";

const file = await (await fetch("/openapi.json")).json();
document.getElementById("about").textContent = file.info.description;
for (const [path, methods] of Object.entries(file.paths)) {
  for (const [method, call] of Object.entries(methods)) document.getElementById("calls").append(section(path, method, call));
}
document.body.dataset.ready = "true";

function section(path, method, call) {
  const made = element("section", { class: "call" });
  const heading = element("h2");
  heading.append(element("span", { class: "method" }, method.toUpperCase()), " ", element("code", {}, path));
  made.append(heading, element("p", {}, call.summary));
  if (call.description) made.append(element("p", { class: "faint" }, call.description));
  if (call["x-example"]) made.append(element("pre", {}, call["x-example"].replaceAll("ADDRESS", location.origin)));
  if (call.parameters) {
    made.append(table(["parameter", "", ""], call.parameters.map((p) => [p.name, typeOf(p.schema), p.description])));
  }
  if (call.requestBody) {
    made.append(table(["body", ""], Object.entries(resolve(call.requestBody).content).map(([type, body]) => [type, shape(body.schema)])));
  }
  made.append(table(["status", "", ""], Object.entries(call.responses).map(([status, answer]) => {
    const found = resolve(answer);
    const content = Object.values(found.content ?? {})[0];
    return [status, found.description, content ? shape(content.schema) : ""];
  })));
  return made;
}

function table(columns, rows) {
  const scroll = element("div", { class: "scroll" }), made = element("table"), head = element("tr");
  head.append(...columns.map((column) => element("th", {}, column)));
  const body = element("tbody");
  for (const row of rows) {
    const line = element("tr");
    for (const cell of row) {
      const field = element("td");
      field.append(/^[{["]/.test(cell) ? element("code", {}, cell) : cell);
      line.append(field);
    }
    body.append(line);
  }
  const top = element("thead");
  top.append(head);
  made.append(top, body);
  scroll.append(made);
  return scroll;
}

function resolve(part) {
  return part?.$ref ? part.$ref.slice(2).split("/").reduce((place, key) => place[key], file) : part;
}

function typeOf(schema) {
  const bounds = [schema.minimum, schema.maximum];
  return bounds.some((bound) => bound !== undefined) ? `${schema.type} from ${bounds[0]}${bounds[1] === undefined ? "" : ` to ${bounds[1]}`}` : schema.type;
}

/** Return a schema as a short text: {"results": [{...}]}. */
function shape(given) {
  const schema = resolve(given);
  if (!schema) return "";
  if (schema.oneOf) return schema.oneOf.map(shape).join(" or ");
  if (schema.type === "array") return `[${shape(schema.items)}, ...]`;
  if (schema.type === "object" && schema.properties) {
    return `{${Object.entries(schema.properties).map(([name, inner]) => `"${name}": ${shape(inner)}`).join(", ")}}`;
  }
  if (schema.format === "binary") return "files";
  return schema.format === "base64" ? "base64" : Array.isArray(schema.type) ? schema.type[0] : schema.type ?? "";
}
