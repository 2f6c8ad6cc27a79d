//! The graph as text: stable and readable, for tests and dry runs.

use std::fmt::{Display, Write as _};

use super::{
    CopyOp, CopySource, GitOp, Graph, Limits, MountOp, Op, RunOp, Security, Ulimit, Vertex,
};

/// Writes a graph: a line for each vertex, its inputs behind `<`, its facts indented below.
#[must_use]
pub fn dump(graph: &Graph) -> String {
    let mut text = String::new();
    for (id, vertex) in graph.vertices().iter().enumerate() {
        let inputs: Vec<String> = vertex
            .inputs
            .iter()
            .map(|input| input.index().to_string())
            .collect();
        let inputs = match inputs.as_slice() {
            [] => String::new(),
            inputs => format!(" < {}", inputs.join(" ")),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{id} {}{inputs}  {:?}", kind(&vertex.op), vertex.name);
        facts(&mut text, vertex);
    }
    text
}

fn kind(op: &Op) -> &'static str {
    match op {
        Op::Scratch => "scratch",
        Op::Image(_) => "image",
        Op::Context(_) => "context",
        Op::Run(_) => "run",
        Op::Copy(_) => "copy",
        Op::Mkdir(_) => "mkdir",
        Op::Fetch(_) => "fetch",
        Op::Git(_) => "git",
    }
}

fn facts(text: &mut String, vertex: &Vertex) {
    match &vertex.op {
        Op::Scratch => {}
        Op::Context(context) => optional(text, "name", context.name.as_ref()),
        Op::Image(image) => {
            fact(text, "name", &image.name);
            fact(text, "config", image.config);
            for layer in &image.layers {
                fact(text, "layer", layer);
            }
        }
        Op::Run(run) => run_facts(text, run),
        Op::Copy(copy) => copy_facts(text, copy),
        Op::Mkdir(mkdir) => {
            fact(text, "path", &mkdir.path);
            optional(
                text,
                "user",
                Some(&mkdir.user).filter(|user| !user.is_empty()),
            );
        }
        Op::Fetch(fetch) => {
            fact(text, "url", &fetch.url);
            fact(text, "name", &fetch.name);
            optional(text, "checksum", fetch.checksum.as_ref());
        }
        Op::Git(git) => git_facts(text, git),
    }
}

fn git_facts(text: &mut String, git: &GitOp) {
    fact(text, "url", &git.url);
    optional(text, "reference", git.reference.as_ref());
    optional(text, "commit", git.commit.as_ref());
    let subdir = Some(&git.subdir).filter(|subdir| !subdir.is_empty());
    optional(text, "subdir", subdir);
    for (name, set) in [
        ("login", git.login.is_some()),
        ("keep-git-dir", git.keep_git_dir),
        ("submodules", git.submodules),
    ] {
        if set {
            fact(text, "flag", name);
        }
    }
}

fn run_facts(text: &mut String, run: &RunOp) {
    fact(text, "args", format_args!("{:?}", run.args));
    for (name, value) in &run.env {
        fact(text, "env", format_args!("{name}={value:?}"));
    }
    fact(text, "cwd", &run.cwd);
    optional(
        text,
        "user",
        Some(&run.user).filter(|user| !user.is_empty()),
    );
    fact(text, "network", format_args!("{:?}", run.network));
    if run.security == Security::Insecure {
        fact(text, "security", "Insecure");
    }
    optional(text, "hostname", run.hostname.as_ref());
    limit_facts(text, &run.limits);
    for name in &run.extra_hosts {
        fact(text, "host", name);
    }
    for script in &run.scripts {
        fact(
            text,
            "script",
            format_args!("{} {:?}", script.name, script.content),
        );
    }
    for mount in &run.mounts {
        mount_fact(text, mount);
    }
}

fn mount_fact(text: &mut String, mount: &MountOp) {
    let access = |writable: bool| if writable { "rw" } else { "ro" };
    let need = |required: bool| if required { " required" } else { "" };
    match mount {
        MountOp::Bind {
            input,
            source,
            target,
            writable,
        } => {
            let mode = access(*writable);
            let mount = format_args!("bind {target:?} {mode} = input {input} {source:?}");
            fact(text, "mount", mount);
        }
        MountOp::Tmpfs { target, size } => {
            let size = size.map_or(String::new(), |size| format!(" size {size}"));
            fact(text, "mount", format_args!("tmpfs {target:?}{size}"));
        }
        MountOp::Cache {
            id,
            target,
            sharing,
            writable,
            seed,
            mode,
            uid,
            gid,
        } => {
            let mut mount = format!(
                "cache {target:?} {} id {id:?} {sharing:?}",
                access(*writable)
            );
            let number = |number: u32| number.to_string();
            for (name, value) in [
                ("mode", mode.map(|mode| format!("{mode:04o}"))),
                ("uid", uid.map(number)),
                ("gid", gid.map(number)),
            ] {
                if let Some(value) = value {
                    mount.push_str(&format!(" {name} {value}"));
                }
            }
            if let Some((input, source)) = seed {
                mount.push_str(&format!(" = input {input} {source:?}"));
            }
            fact(text, "mount", mount);
        }
        MountOp::Secret {
            id,
            target,
            env,
            required,
            mode,
            owner: (uid, gid),
        } => {
            let mut mount = format!("secret {id:?}{}", need(*required));
            if let Some(target) = target {
                mount.push_str(&format!(" {target:?} {mode:04o} {uid}:{gid}"));
            }
            if let Some(env) = env {
                mount.push_str(&format!(" env {env}"));
            }
            fact(text, "mount", mount);
        }
        MountOp::Ssh {
            id,
            target,
            required,
            mode,
            owner: (uid, gid),
        } => {
            let need = need(*required);
            let mount = format_args!("ssh {id:?}{need} {target:?} {mode:04o} {uid}:{gid}");
            fact(text, "mount", mount);
        }
    }
}

fn limit_facts(text: &mut String, limits: &Limits) {
    for limit in &limits.ulimits {
        let Ulimit { name, soft, hard } = limit;
        fact(text, "ulimit", format_args!("{name}={soft}:{hard}"));
    }
    if !limits.resources.is_empty() {
        fact(text, "limits", format_args!("{:?}", limits.resources));
    }
    optional(text, "shm-size", limits.shm_size);
}

fn copy_facts(text: &mut String, copy: &CopyOp) {
    for source in &copy.sources {
        match source {
            CopySource::Path { input, path } => {
                fact(text, "source", format_args!("input {input} {path:?}"));
            }
            CopySource::Inline { name, content } => {
                fact(text, "source", format_args!("inline {name:?} {content:?}"));
            }
        }
    }
    fact(text, "destination", format_args!("{:?}", copy.destination));
    optional(text, "chown", copy.chown.as_ref());
    optional(text, "chmod", copy.chmod.as_ref());
    for pattern in &copy.exclude {
        fact(text, "exclude", format_args!("{pattern:?}"));
    }
    for (name, set) in [
        ("parents", copy.parents),
        ("link", copy.link),
        ("unpack", copy.unpack),
        ("unpack-fetched", copy.unpack_fetched),
        ("keep-owner", copy.keep_owner),
        ("literal", copy.literal),
    ] {
        if set {
            fact(text, "flag", name);
        }
    }
}

fn fact(text: &mut String, name: &str, value: impl Display) {
    let _ = writeln!(text, "    {name} {value}");
}

fn optional(text: &mut String, name: &str, value: Option<impl Display>) {
    if let Some(value) = value {
        fact(text, name, value);
    }
}
