//! `RUN`: process, environment, heredocs and flags (A8, A13, B1, B3).

use kiln_grammar::ast::{Command, Heredoc, Run};
use kiln_grammar::diagnostic::Diagnostic;
use kiln_grammar::source::Spanned;

use super::copy::check_name;
use super::stage::{StageLowering, Step};
use crate::graph::{Network, Op, RunOp, Script, Security, Vertex};

/// The build argument that names the sandbox's host (A6.11).
pub(super) const HOSTNAME: &str = "BUILDKIT_SANDBOX_HOSTNAME";

/// Where scripts of heredocs appear while they run (A13.5).
const SCRIPTS: &str = "/dev/pipes";

impl StageLowering<'_, '_> {
    /// `RUN`
    pub(super) fn run_command(&mut self, run: &Run, step: &Step<'_>) -> Result<(), Diagnostic> {
        let security = self.security(run)?;
        let network = self.network(run.network.as_ref())?;
        let mut inputs = vec![self.state.vertex];
        let mounts = self.mounts(run, step, &mut inputs)?;
        let (args, scripts, suffix) = self.process(run)?;
        let hostname = self.hostname(step)?;
        let prefix = self.state.scope.history_prefix();
        let created_by = format!("RUN {prefix}{} # buildkit", args.join(" "));
        let env = self.state.scope.env();
        self.shared
            .charge(self.state.scope.size(), step.instruction.span)?;
        let op = Op::Run(RunOp {
            args,
            env,
            cwd: self.directory().to_owned(),
            user: self.state.config.config.user.clone(),
            network,
            security,
            hostname,
            scripts,
            mounts,
            limits: Box::new(self.shared.options.limits.clone()),
            extra_hosts: self.shared.options.extra_hosts.clone(),
        });
        let name = self.name(step, &suffix);
        let origin = Some(self.origin(step));
        let layer = self.push(Vertex {
            op,
            inputs,
            name,
            origin,
        });
        self.record(created_by, Some(layer));
        Ok(())
    }

    /// The arguments, the scripts they need, and what progress adds to the name.
    fn process(&self, run: &Run) -> Result<(Vec<String>, Vec<Script>, String), Diagnostic> {
        let line = match &run.command {
            Command::Exec(args) => return Ok((args.clone(), Vec::new(), String::new())),
            Command::Shell(line) => line,
        };
        let script = match run.heredocs.as_slice() {
            [] => return Ok((self.in_shell(line.clone()), Vec::new(), String::new())),
            [heredoc] if is_whole(line, heredoc) => heredoc,
            heredocs => {
                let text = reassemble(line, heredocs);
                return Ok((self.in_shell(text), Vec::new(), String::new()));
            }
        };
        let suffix = format!(" ({})", summary(&script.content));
        if !script.content.starts_with("#!") || self.state.config.os == "windows" {
            let args = self.in_shell(script.content.clone());
            return Ok((args, Vec::new(), suffix));
        }
        check_name(script)?;
        let args = self.in_shell(format!("{SCRIPTS}/{}", script.name));
        let script = Script {
            name: script.name.clone(),
            content: script.content.clone(),
        };
        Ok((args, vec![script], suffix))
    }

    /// The rights of a step (B3.2); devices cannot be given (B3.3).
    fn security(&mut self, run: &Run) -> Result<Security, Diagnostic> {
        if let Some(device) = run.devices.first() {
            self.shared.unsupported("RUN --device", device.span)?;
        }
        let Some(mode) = &run.security else {
            return Ok(Security::Sandbox);
        };
        match mode.value.as_str() {
            "sandbox" => Ok(Security::Sandbox),
            // Whether a build allows it is not the file's business.
            "insecure" if self.shared.options.allow_insecure || self.shared.looking => {
                Ok(Security::Insecure)
            }
            "insecure" => Err(
                Diagnostic::error("security.insecure is not allowed", mode.span)
                    .with_hint("pass `--allow security.insecure`"),
            ),
            other => {
                let message = format!("security `{other}` is not valid");
                Err(Diagnostic::error(message, mode.span))
            }
        }
    }

    /// The host name that the command line asks for (A6.11).
    fn hostname(&self, step: &Step<'_>) -> Result<Option<String>, Diagnostic> {
        let name = self.shared.options.build_arg(HOSTNAME);
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if name.len() > 64 || !name.bytes().all(good) {
            let message = format!("invalid host name {name:?} in the build argument {HOSTNAME}");
            let error = Diagnostic::error(message, step.instruction.keyword.span);
            return Err(error.with_hint("up to 64 letters, digits, dashes and dots"));
        }
        Ok(Some(name.to_owned()))
    }

    /// The network of a step: its own word, or that of the build (B3.1).
    fn network(&self, word: Option<&Spanned<String>>) -> Result<Network, Diagnostic> {
        let build = self.shared.options.network;
        let Some(word) = word else {
            return Ok(build);
        };
        match word.value.as_str() {
            "default" => Ok(build),
            "none" => Ok(Network::None),
            "host" if build == Network::Host || self.shared.options.allow_host_network => {
                Ok(Network::Host)
            }
            // Whether a build allows it is not the file's business.
            "host" if self.shared.looking => Ok(Network::Host),
            "host" => Err(Diagnostic::error("network.host is not allowed", word.span)
                .with_hint("pass `--allow network.host`")),
            other => {
                let message = format!("unsupported network mode `{other}`");
                Err(Diagnostic::error(message, word.span)
                    .with_hint("possible are `default`, `none` and `host`"))
            }
        }
    }
}

/// Whether a heredoc is all there is on the line: its body is the script then (A13.5).
fn is_whole(line: &str, heredoc: &Heredoc) -> bool {
    let rest = line.trim().trim_start_matches(|c: char| c.is_ascii_digit());
    let Some(rest) = rest.strip_prefix("<<") else {
        return false;
    };
    let rest = rest.strip_prefix('-').unwrap_or(rest).trim_start();
    rest.replace(['\'', '"', '\\'], "") == heredoc.name
}

/// Puts a command and the bodies of its heredocs together again for the shell (A13.6).
fn reassemble(line: &str, heredocs: &[Heredoc]) -> String {
    let mut text = line.to_owned();
    for heredoc in heredocs {
        text.push('\n');
        text.push_str(&heredoc.content);
        text.push_str(&heredoc.name);
    }
    text
}

/// The first line of a script (A13.10).
fn summary(script: &str) -> String {
    let mut lines = script.trim().lines();
    let first = lines.next().unwrap_or_default();
    match lines.next() {
        Some(_) => format!("{first}..."),
        None => first.to_owned(),
    }
}
