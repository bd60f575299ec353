// Jobs that are not finished: their events move the bar, and when they end the server is asked how they look then.
// Browsers keep few connections to one server, so only the first FOLLOWED jobs of a page get a stream; the others follow
// as those end.
const FOLLOWED = 3;
const RETRY_MS = 2000;
const followed = new Set();

export function followJobs(root) {
  for (const job of root.querySelectorAll("[data-job]")) {
    if (followed.size >= FOLLOWED) return;
    if (!followed.has(job.dataset.job)) follow(job.dataset.job, job.dataset.events);
  }
}

function follow(id, address) {
  followed.add(id);
  const stream = new EventSource(address);
  let told = "";
  const move = ({ data }) => {
    const job = JSON.parse(data);
    const place = document.getElementById(id);
    if (!place) return end(); // the list was filtered meanwhile
    const { progress } = job;
    const field = (name) => place.querySelector(`[data-field=${name}]`);
    field("status").textContent = job.status;
    field("status").className = `badge ${job.status}`;
    if (!progress) return;
    place.querySelector("progress").value = progress.fraction;
    const left = progress.eta_seconds ? `, about ${Math.ceil(progress.eta_seconds)} s left` : "";
    field("stage").textContent = `${progress.stage}, ${progress.done} of ${progress.total}${left}`;
    // Screen readers hear every quarter of a stage, not every step.
    const quarter = `${progress.stage} ${Math.floor(progress.fraction * 4) * 25} percent`;
    if (quarter !== told) field("say").textContent = told = quarter;
  };
  const end = () => {
    stream.close();
    followed.delete(id);
    followJobs(document);
  };
  const finish = async () => {
    stream.close();
    const answer = await fetch(`/jobs/${id}/line`, { headers: { accept: "text/html" } }).catch(() => null);
    const place = document.getElementById(id);
    if (answer?.ok && place) {
      const parsed = new DOMParser().parseFromString(await answer.text(), "text/html");
      const line = parsed.getElementById(id);
      if (line) place.replaceWith(document.adoptNode(line));
      document.dispatchEvent(new CustomEvent("bitplan:job-ended", { detail: { id } }));
    }
    if (answer?.ok) end();
    else again();
  };
  const again = () => {
    stream.close();
    setTimeout(end, RETRY_MS);
  };
  for (const name of ["state", "progress"]) stream.addEventListener(name, move);
  for (const name of ["result", "error"]) {
    // "error" is also what a broken connection is called, which has no data; the browser tries again by itself unless the
    // server refused.
    stream.addEventListener(name, (event) => {
      if (event.data) finish();
      else if (stream.readyState === EventSource.CLOSED) again();
    });
  }
}
