// What every page can use; each part finds its own places and does nothing on pages without them.
import { followJobs } from "./jobs.js";
import { mapKeys } from "./map.js";
import { copyButtons } from "./copy.js";
import { pickTwo } from "./pick.js";
import { slide } from "./slide.js";

copyButtons();
slide();
refresh(document);
document.addEventListener("htmx:after:swap", () => refresh(document));

function refresh(root) {
  mapKeys(root);
  followJobs(root);
  pickTwo(root);
}
