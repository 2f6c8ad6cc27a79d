//! What processes of a build, or of an image that is run, may use and see.

use std::collections::BTreeSet;

use clap::{ArgAction, Args};
use kiln_builder::graph::{LimitError, Limits, Network, Resources, Ulimit, limits};
use kiln_builder::runtime::network::{Demand, HostEntry};

use crate::report::UsageError;

/// The network of processes and the limits that hold for them.
#[derive(Debug, Args)]
pub(crate) struct SandboxArgs {
    /// Network: default (one of its own with a way out through pasta, where that is
    /// installed, else this machine's), host (this machine's), none (a loopback), or
    /// pasta (as default, but never this machine's)
    #[arg(long, value_name = "MODE", default_value = "default", value_parser = network)]
    pub(crate) network: NetworkMode,

    /// Line for /etc/hosts, NAME:ADDRESS; host-gateway stands for this machine's address; may be
    /// repeated
    #[arg(long = "add-host", value_name = "NAME:ADDRESS")]
    pub(crate) add_host: Vec<String>,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

/// What processes may use.
#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    /// Limit of a process, NAME=SOFT[:HARD], by the names of setrlimit (nofile, core, …); -1 is none;
    /// may be repeated
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]")]
    ulimits: Vec<String>,

    /// Size of /dev/shm [default: 64m]
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,

    /// Memory of all processes together; more kills one of them
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,

    /// Memory and swap together; -1 is no limit [default: twice the memory]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_swap: Option<String>,

    /// Processors to use at a time, as 1.5
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,

    /// How often --cpu-quota is given anew, microseconds
    #[arg(long, value_name = "TIME")]
    cpu_period: Option<String>,

    /// Processor time in each period, microseconds
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    cpu_quota: Option<String>,

    /// Weight when processors are short; 1024 is usual
    #[arg(short, long, value_name = "NUMBER")]
    cpu_shares: Option<String>,

    /// Processors to run on, as 0-3 or 0,2
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,

    /// Memory nodes to use, as 0-1
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,

    /// Processes and threads at a time [default: no limit]
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<String>,

    /// A limit of the above by its name, as memory=512m; may be repeated
    #[arg(long = "resource", value_name = "NAME=VALUE", action = ArgAction::Append)]
    resources: Vec<String>,

    /// Control group, below the root of the hierarchies, to make groups in
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup_parent: Option<String>,
}

/// What `--network` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NetworkMode {
    pub(crate) network: Network,
    pub(crate) demand: Demand,
}

fn network(text: &str) -> Result<NetworkMode, String> {
    let mode = |network, demand| Ok(NetworkMode { network, demand });
    match text {
        "default" => mode(Network::Default, Demand::Preferred),
        "pasta" => mode(Network::Default, Demand::Required),
        "host" => mode(Network::Host, Demand::Preferred),
        "none" => mode(Network::None, Demand::Preferred),
        _ => Err(format!(
            "network mode `{text}` is not supported: possible are default, host, none and pasta"
        )),
    }
}

impl SandboxArgs {
    /// The hosts of `--add-host`.
    pub(crate) fn hosts(&self) -> anyhow::Result<Vec<HostEntry>> {
        let entries = self.add_host.iter().map(|text| HostEntry::parse(text));
        let entries = entries.collect::<Result<_, _>>();
        entries.map_err(|error| UsageError::new(error.to_string()).into())
    }
}

/// Names of hosts, in order and each once.
pub(crate) fn names(hosts: &[HostEntry]) -> Vec<String> {
    let names: BTreeSet<_> = hosts.iter().map(|host| host.name.clone()).collect();
    names.into_iter().collect()
}

impl LimitArgs {
    /// What the flags come to.
    pub(crate) fn limits(&self) -> anyhow::Result<Limits> {
        self.parse()
            .map_err(|error| UsageError::new(error.to_string()).into())
    }

    fn parse(&self) -> Result<Limits, LimitError> {
        let invalid = |name: &str, value: &str, expected| LimitError::Value {
            name: name.to_owned(),
            value: value.to_owned(),
            expected,
        };
        let mut settings = Vec::new();
        for text in &self.resources {
            let pair = text.split_once('=');
            settings.push(pair.ok_or_else(|| invalid("resource", text, "NAME=VALUE"))?);
        }
        let flags = [
            ("memory", &self.memory),
            ("memory-swap", &self.memory_swap),
            ("cpus", &self.cpus),
            ("cpu-period", &self.cpu_period),
            ("cpu-quota", &self.cpu_quota),
            ("cpu-shares", &self.cpu_shares),
            ("cpuset-cpus", &self.cpuset_cpus),
            ("cpuset-mems", &self.cpuset_mems),
            ("pids-limit", &self.pids_limit),
        ];
        let given = flags
            .iter()
            .filter_map(|(name, value)| Some((*name, value.as_deref()?)));
        settings.extend(given);
        let shm_size = self.shm_size.as_deref().map(|text| {
            limits::size(text).ok_or_else(|| invalid("shm-size", text, "a size, as 64m or 1g"))
        });
        Ok(Limits {
            ulimits: Ulimit::parse_all(self.ulimits.iter().map(String::as_str))?,
            resources: Resources::parse(settings)?,
            // docker takes a zero for the usual size
            shm_size: shm_size.transpose()?.filter(|size| *size > 0),
        })
    }
}
