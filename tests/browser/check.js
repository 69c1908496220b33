// Opens report pages in headless Chromium and says what is wrong with them, one line each.
//
//   node check.js CHROMIUM FOLDER [SCREENSHOTS]
//
// Exit status: 0 nothing is wrong, 1 something is, or the pages could not be looked at.
"use strict";
const fs = require("node:fs");
const path = require("node:path");
const { pathToFileURL } = require("node:url");
const { chromium } = require("playwright-core");
const axe = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const [, , executablePath, folder, screenshots] = process.argv;
const widths = [360, 1600];
const schemes = ["light", "dark"];

async function look(browser, file, width, colorScheme) {
  const problems = [];
  const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme });
  const page = await context.newPage();
  const url = pathToFileURL(path.join(folder, file)).href;
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") problems.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => problems.push(`script: ${error.message}`));
  page.on("request", (request) => {
    const asked = request.url();
    if (asked !== url && !asked.startsWith("data:")) problems.push(`request: ${asked}`);
  });
  await page.goto(url);
  if (screenshots) {
    const name = `${path.basename(file, ".html")}-${width}-${colorScheme}.png`;
    await page.screenshot({ path: path.join(screenshots, name), fullPage: true });
  }
  await page.evaluate(() => document.querySelectorAll("details").forEach((one) => (one.open = true)));
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  if (wide > 0) problems.push(`overflow: ${wide} pixels`);
  // Not a script of the page: its content policy would not let it in.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => axe.run());
  for (const one of violations) {
    const node = one.nodes[0];
    problems.push(`axe: ${one.id} ×${one.nodes.length}: ${node.target.join(" ")}: ${node.failureSummary}`);
  }
  problems.push(...(await use(page)));
  await context.close();
  return problems;
}

// What the script adds: a table can be filtered and sorted.
async function use(page) {
  const filter = page.locator("[data-filter]");
  if ((await filter.count()) === 0) return [];
  const rows = page.locator("#all-results tbody tr:visible");
  const before = await rows.count();
  await filter.fill("no such case");
  const none = await rows.count();
  await filter.fill("");
  await page.locator("#all-results thead button").last().click();
  const sorted = await page.locator("#all-results thead [aria-sort]").count();
  const problems = [];
  if (before === 0 || none !== 0) problems.push(`filter: ${before} rows, ${none} after a filter that none passes`);
  if (sorted !== 1) problems.push(`sort: ${sorted} columns say that they are sorted`);
  return problems;
}

async function main() {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const files = fs.readdirSync(folder).filter((name) => name.endsWith(".html")).sort();
  let looked = 0;
  let wrong = 0;
  for (const file of files) {
    for (const width of widths) {
      for (const scheme of schemes) {
        looked += 1;
        for (const problem of await look(browser, file, width, scheme)) {
          wrong += 1;
          console.log(`${file} at ${width} px, ${scheme}: ${problem}`);
        }
      }
    }
  }
  await browser.close();
  console.log(`${files.length} pages, ${looked} looks, ${wrong} problems`);
  process.exitCode = wrong === 0 && looked > 0 ? 0 : 1;
}

main().catch((error) => {
  console.log(String(error));
  process.exitCode = 1;
});
