//! The instructions that only edit the image config, and `WORKDIR` (A9).

use std::collections::BTreeMap;

use kiln_grammar::ast::{ArgPair, Command, Healthcheck, KeyValue, Onbuild, Word};
use kiln_grammar::diagnostic::Diagnostic;
use kiln_registry::spec::config::Healthcheck as HealthConfig;
use serde_json::{Map, Value};

use super::stage::{StageLowering, Step};
use super::{expose, history, path, signal};
use crate::graph::{MkdirOp, Op, Vertex};

/// How many ports of one `EXPOSE` history lists one by one; ranges beyond stay as written.
const LISTED_PORTS: usize = 1024;

impl StageLowering<'_, '_> {
    /// `ARG`: the command line's value, else the default, else the global value (A6.2).
    pub(super) fn arg(&mut self, pairs: &[ArgPair]) -> Result<(), Diagnostic> {
        let mut words = Vec::new();
        for pair in pairs {
            let name = &pair.name.value;
            let value = match (self.shared.options.build_arg(name), &pair.default) {
                (Some(value), _) => Some(value.to_owned()),
                (None, Some(word)) => Some(self.expand(word)?),
                (None, None) => self.shared.globals.get(name).map(str::to_owned),
            };
            self.state.scope.declare(name, value.as_deref());
            self.shared.declared.push(name.clone());
            words.push(match value {
                Some(value) => format!("{name}={value}"),
                None => name.clone(),
            });
        }
        self.record(format!("ARG {}", words.join(" ")), None);
        Ok(())
    }

    /// `ENV`: all values see the environment from before the line (A3.6).
    pub(super) fn env(&mut self, pairs: &[KeyValue]) -> Result<(), Diagnostic> {
        let pairs = self.expand_pairs(pairs)?;
        let mut text = "ENV".to_owned();
        for (name, value) in &pairs {
            self.state.scope.set(name, value);
            let env = self.state.config.config.env.get_or_insert_default();
            let pair = format!("{name}={value}");
            text.push_str(&format!(" {pair}"));
            let index = *self.state.env_at.entry(name.clone()).or_insert(env.len());
            match env.get_mut(index) {
                Some(known) => *known = pair,
                None => env.push(pair),
            }
        }
        self.record(text, None);
        Ok(())
    }

    /// `LABEL` (A9.10).
    pub(super) fn label(&mut self, pairs: &[KeyValue]) -> Result<(), Diagnostic> {
        let pairs = self.expand_pairs(pairs)?;
        let mut text = "LABEL".to_owned();
        let labels = self.state.config.config.labels.get_or_insert_default();
        for (name, value) in pairs {
            text.push_str(&format!(" {name}={value}"));
            labels.insert(name, value);
        }
        self.record(text, None);
        Ok(())
    }

    fn expand_pairs(&mut self, pairs: &[KeyValue]) -> Result<Vec<(String, String)>, Diagnostic> {
        let mut expanded = Vec::new();
        for pair in pairs {
            let name = self.expand(&pair.key)?;
            if name.is_empty() {
                return Err(Diagnostic::error("names can not be blank", pair.key.span));
            }
            expanded.push((name, self.expand(&pair.value)?));
        }
        Ok(expanded)
    }

    /// `CMD` (A9.1, A3.2).
    pub(super) fn cmd(&mut self, command: &Command, step: &Step<'_>) -> Result<(), Diagnostic> {
        self.advise_exec_form("CMD", command, step);
        let args = self.command_line(command);
        self.record(format!("CMD {}", history::quoted(&args)), None);
        self.state.config.config.cmd = Some(args);
        self.state.config.config.args_escaped = true;
        self.state.has_cmd = true;
        Ok(())
    }

    /// `ENTRYPOINT`: it takes away a `CMD` that this stage did not set itself (A9.2).
    pub(super) fn entrypoint(
        &mut self,
        command: &Command,
        step: &Step<'_>,
    ) -> Result<(), Diagnostic> {
        self.advise_exec_form("ENTRYPOINT", command, step);
        let args = self.command_line(command);
        self.record(format!("ENTRYPOINT {}", history::quoted(&args)), None);
        self.state.config.config.entrypoint = Some(args).filter(|args| !args.is_empty());
        if !self.state.has_cmd {
            self.state.config.config.cmd = None;
        }
        Ok(())
    }

    /// The arguments of a command; the shell form is one argument of the shell (A3.4).
    pub(super) fn command_line(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(args) => args.clone(),
            Command::Shell(text) => self.in_shell(text.clone()),
        }
    }

    /// A text as the last argument of the image's shell.
    pub(super) fn in_shell(&self, text: String) -> Vec<String> {
        let config = &self.state.config;
        let mut args = match config.config.shell.as_deref() {
            Some(shell) if !shell.is_empty() => shell.to_vec(),
            _ if config.os == "windows" => ["cmd", "/S", "/C"].map(str::to_owned).to_vec(),
            _ => ["/bin/sh", "-c"].map(str::to_owned).to_vec(),
        };
        args.push(text);
        args
    }

    /// `SHELL` (A9.3).
    pub(super) fn shell(&mut self, shell: &[String]) -> Result<(), Diagnostic> {
        self.state.config.config.shell = Some(shell.to_vec());
        self.record(format!("SHELL {}", history::plain(shell)), None);
        Ok(())
    }

    /// `HEALTHCHECK` (A9.4).
    pub(super) fn healthcheck(&mut self, check: &Healthcheck) -> Result<(), Diagnostic> {
        let check = match check {
            Healthcheck::None => HealthConfig {
                test: vec!["NONE".to_owned()],
                ..HealthConfig::default()
            },
            Healthcheck::Check {
                command,
                interval,
                timeout,
                start_period,
                start_interval,
                retries,
            } => HealthConfig {
                test: match command {
                    Command::Shell(text) => vec!["CMD-SHELL".to_owned(), text.clone()],
                    Command::Exec(args) => {
                        let kind = std::iter::once("CMD".to_owned());
                        kind.chain(args.iter().cloned()).collect()
                    }
                },
                interval: *interval,
                timeout: *timeout,
                start_period: *start_period,
                start_interval: *start_interval,
                retries: *retries,
            },
        };
        let text = history::healthcheck(&check);
        self.state.config.config.healthcheck = Some(check);
        self.record(format!("HEALTHCHECK {text}"), None);
        Ok(())
    }

    /// `STOPSIGNAL` (A9.5).
    pub(super) fn stop_signal(&mut self, word: &Word) -> Result<(), Diagnostic> {
        let name = self.expand(word)?;
        if !signal::is_valid(&name) {
            let message = format!("invalid signal: `{name}`");
            return Err(Diagnostic::error(message, word.span));
        }
        self.record(format!("STOPSIGNAL {name}"), None);
        self.state.config.config.stop_signal = name;
        Ok(())
    }

    /// `EXPOSE` (A9.6).
    pub(super) fn expose(&mut self, words: &[Word]) -> Result<(), Diagnostic> {
        let mut all = Vec::new();
        let mut written = Vec::new();
        for word in words {
            let texts = self
                .state
                .scope
                .expand_words(&word.value, self.shared.escape);
            for text in self.expanded(texts, word.span)? {
                let ports = expose::parse(&text)
                    .map_err(|error| Diagnostic::error(error.to_string(), word.span))?;
                // A range is a short text for a lot of work.
                self.shared.charge(ports.ports.len() * 10, word.span)?;
                if ports.shouted {
                    self.advise_protocol(&text, word);
                }
                if ports.mapped {
                    let message = format!(
                        "EXPOSE instruction should not define an IP address or host-port mapping, \
                         found '{text}'"
                    );
                    let warning = Diagnostic::warning("ExposeInvalidFormat", message, word.span);
                    self.shared.warn(warning);
                }
                insert_all(
                    self.state
                        .config
                        .config
                        .exposed_ports
                        .get_or_insert_default(),
                    &ports.ports,
                );
                if all.len() <= LISTED_PORTS {
                    all.extend(ports.ports);
                }
                written.push(text);
            }
        }
        let listed = if all.len() > LISTED_PORTS {
            &written
        } else {
            &all
        };
        self.record(format!("EXPOSE {}", history::plain(listed)), None);
        Ok(())
    }

    /// `VOLUME` (A9.7).
    pub(super) fn volume(&mut self, words: &[Word]) -> Result<(), Diagnostic> {
        let mut paths = Vec::new();
        for word in words {
            let path = self.expand(word)?;
            if path.is_empty() {
                let message = "VOLUME specified can not be an empty string";
                return Err(Diagnostic::error(message, word.span));
            }
            paths.push(path);
        }
        let volumes = self.state.config.config.volumes.get_or_insert_default();
        insert_all(volumes, &paths);
        self.record(format!("VOLUME {}", history::plain(&paths)), None);
        Ok(())
    }

    /// `USER` (A9.8).
    pub(super) fn user(&mut self, word: &Word) -> Result<(), Diagnostic> {
        let user = self.expand(word)?;
        self.record(format!("USER {user}"), None);
        self.state.config.config.user = user;
        Ok(())
    }

    /// `MAINTAINER` (A9.11).
    pub(super) fn maintainer(&mut self, author: &Word) -> Result<(), Diagnostic> {
        self.state.config.author = Some(author.value.clone());
        self.record(format!("MAINTAINER {}", author.value), None);
        Ok(())
    }

    /// `ONBUILD`: kept for children, no history (A7.12, A16.2).
    pub(super) fn onbuild(&mut self, onbuild: &Onbuild) -> Result<(), Diagnostic> {
        let triggers = self.state.config.config.on_build.get_or_insert_default();
        triggers.push(onbuild.trigger.clone());
        Ok(())
    }

    /// `WORKDIR`: a layer of its own, except for the root (A9.9).
    pub(super) fn workdir(&mut self, word: &Word, step: &Step<'_>) -> Result<(), Diagnostic> {
        let written = self.expand(word)?;
        let path = path::join(self.directory(), written.trim_end());
        self.advise_absolute(&written, &path, word, step);
        self.state.config.config.working_dir.clone_from(&path);
        let name = self.name(step, "");
        let layer = (path != "/").then(|| {
            let vertex = Vertex {
                op: Op::Mkdir(MkdirOp {
                    path: path.clone(),
                    user: self.state.config.config.user.clone(),
                }),
                inputs: vec![self.state.vertex],
                name,
                origin: Some(self.origin(step)),
            };
            self.push(vertex)
        });
        self.record(format!("WORKDIR {path}"), layer);
        Ok(())
    }
}

/// Adds names to a set that is written as a JSON object of empty objects.
fn insert_all(set: &mut BTreeMap<String, Value>, names: &[String]) {
    for name in names {
        set.insert(name.clone(), Value::Object(Map::new()));
    }
}
