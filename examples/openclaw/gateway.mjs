// Starts one OpenClaw gateway for one session: its own state folder, its own copy of the config.
//
// Why a launcher: OpenClaw writes beside the config that it reads (a last good copy, and whatever
// its own config tools change), so two sessions must never share that file; and it keeps its
// compile cache in $TMPDIR, which must exist and stay for the next start to be a fast one.
//
// Invariants: the template is copied when it is new or has changed, or when the copy is no JSON
// any more; else the copy is left alone, with what the agent changed in it. OpenClaw's own `meta`
// survives a new copy: without it some versions bring an older file back. Secrets stay in the
// environment; `${NAME}` in the template is replaced by OpenClaw when it reads the file.
// Absent: a second process. OpenClaw is imported here, so signals and exit status are its own.
//
// The package of before 2026.1.30 has another name, clawdbot, in its entry file and its variables.
//
// Usage: node gateway.mjs --port N [--workspace DIR] [--config FILE] [--openclaw DIR]

import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, realpathSync } from "node:fs";
import { renameSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

class SetupError extends Error {}

/** OpenClaw's status for a bad config, which no restart mends. */
const EXIT_CONFIG = 78;

/** In the package's folder, newest layout first. */
const ENTRIES = ["openclaw.mjs", "dist/entry.js"];

/** Makes the folders, the config and the environment; gives the package's entry file. */
function prepare() {
  const options = readOptions();
  const stateFolder = path.join(options.workspace, ".openclaw");
  const temporaryFolder = path.join(options.workspace, ".tmp");
  mkdirSync(stateFolder, { recursive: true, mode: 0o700 });
  mkdirSync(temporaryFolder, { recursive: true, mode: 0o700 });
  const configFile = path.join(stateFolder, "openclaw.json");
  copyConfig(options.config, configFile);
  setDefaults({
    HOME: options.workspace,
    OPENCLAW_HOME: options.workspace,
    OPENCLAW_STATE_DIR: stateFolder,
    OPENCLAW_CONFIG_PATH: configFile,
    // Some old versions do not hear of `--port` in `gateway run`.
    OPENCLAW_GATEWAY_PORT: options.port,
    TMPDIR: temporaryFolder,
    // Dormouse is the only one who restarts, and nothing announces itself on the network.
    OPENCLAW_NO_RESPAWN: "1",
    OPENCLAW_NO_AUTO_UPDATE: "1",
    OPENCLAW_DISABLE_BONJOUR: "1",
    OPENCLAW_EXEC_SHELL_SNAPSHOT: "0",
    // Messages arrive through Dormouse; unset this in the agent's `env` to use OpenClaw's channels.
    OPENCLAW_SKIP_CHANNELS: "1",
  });
  const entry = findEntry(options.openclaw);
  process.chdir(options.workspace);
  process.argv = [process.execPath, entry, "gateway", "run", "--port", options.port];
  return entry;
}

function readOptions() {
  const string = { type: "string" };
  const names = { port: string, workspace: string, config: string, openclaw: string };
  let values;
  try {
    ({ values } = parseArgs({ options: names }));
  } catch (error) {
    throw new SetupError(error.message);
  }
  if (!/^[0-9]+$/.test(values.port ?? "")) {
    throw new SetupError("--port wants a number; Dormouse fills in {port}");
  }
  const here = path.dirname(fileURLToPath(import.meta.url));
  return {
    port: values.port,
    workspace: path.resolve(values.workspace ?? "."),
    config: path.resolve(values.config ?? path.join(here, "openclaw.json")),
    openclaw: values.openclaw,
  };
}

function copyConfig(template, configFile) {
  const text = readFileSync(template, "utf8");
  const wanted = parseConfig(text);
  if (wanted === null) {
    throw new SetupError(`${template} is not a JSON object`);
  }
  refuseMissingVariables(template, text);
  const digest = createHash("sha256").update(text).digest("hex");
  const digestFile = `${configFile}.template-sha256`;
  const present = existsSync(configFile) ? parseConfig(readFileSync(configFile, "utf8")) : null;
  const copied = existsSync(digestFile) ? readFileSync(digestFile, "utf8") : "";
  if (present !== null && copied === digest) {
    return;
  }
  if (present?.meta !== undefined) {
    wanted.meta = present.meta;
  }
  writeWhole(configFile, `${JSON.stringify(wanted, null, 2)}\n`);
  writeWhole(digestFile, digest);
}

/** OpenClaw starts with an unknown `${NAME}` in place, looks healthy, and fails each message. */
function refuseMissingVariables(template, text) {
  const names = [...text.matchAll(/(?<!\$)\$\{([A-Z_][A-Z0-9_]*)\}/g)].map((match) => match[1]);
  const missing = [...new Set(names)].filter((name) => !process.env[name]);
  if (missing.length > 0) {
    const list = missing.join(", ");
    throw new SetupError(`${template} needs ${list}: set it in the agent's env or secrets`);
  }
}

function parseConfig(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && value !== null && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}

/** A reader sees the old text or the new one, also after a crash in between. */
function writeWhole(file, text) {
  const unfinished = `${file}.new`;
  writeFileSync(unfinished, text, { mode: 0o600, flush: true });
  renameSync(unfinished, file);
}

function setDefaults(values) {
  for (const [name, value] of Object.entries(values)) {
    process.env[name] ??= value;
    const oldName = name.replace(/^OPENCLAW_/, "CLAWDBOT_");
    process.env[oldName] ??= process.env[name];
  }
}

/** The package's entry file: below --openclaw, else behind the `openclaw` command in PATH. */
function findEntry(folder) {
  if (folder !== undefined) {
    const entries = ENTRIES.map((entry) => path.resolve(folder, entry));
    const entry = entries.find((file) => existsSync(file));
    if (entry === undefined) {
      throw new SetupError(`there is no ${entries[0]}; --openclaw wants the package's folder`);
    }
    return entry;
  }
  for (const directory of (process.env.PATH ?? "").split(path.delimiter).filter(Boolean)) {
    const command = path.join(directory, "openclaw");
    if (existsSync(command)) {
      const entry = realpathSync(command);
      if (entry.endsWith(".mjs")) {
        return entry;
      }
    }
  }
  throw new SetupError(
    "no `openclaw` in PATH; install it (npm install -g openclaw@2026.5.28) or pass --openclaw DIR",
  );
}

function prepareOrExit() {
  try {
    return prepare();
  } catch (error) {
    // A SetupError or one of the file system; both say what is wrong without a stack.
    process.stderr.write(`gateway.mjs: ${error.message}\n`);
    process.exit(EXIT_CONFIG);
  }
}

await import(pathToFileURL(prepareOrExit()));
