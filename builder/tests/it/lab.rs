//! Machines for tests of the network: network namespaces with servers in them. Nothing in here talks
//! to anything outside of them, and all of it goes with the test, also when that is killed.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::env::{Run, TestEnv};

/// The machine that builds, as others see it.
pub(crate) const HOST: &str = "198.51.100.1";
/// Another machine.
pub(crate) const WORLD: &str = "198.51.100.2";
/// The other machine by IPv6.
pub(crate) const WORLD_6: &str = "fd00:77::2";

/// Two machines that are connected: one that builds, and the rest of the world.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) host: Machine,
    pub(crate) world: Machine,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let (host, world) = (Machine::new(), Machine::new());
        let to_host = host.holder.id().to_string();
        world.sh(&format!(
            "ip link add eth0 type veth peer name eth0 netns {to_host}"
        ));
        // The kernel gives an interface its link-local address some time after it is up, and without
        // one `pasta` takes a machine for one without IPv6.
        host.sh(&format!(
            "ip addr add {HOST}/24 dev eth0; ip addr add fd00:77::1/64 dev eth0 nodad;
             ip addr add fe80::77:1/64 dev eth0 nodad; ip link set eth0 up"
        ));
        world.sh(&format!(
            "ip addr add {WORLD}/24 dev eth0; ip addr add {WORLD_6}/64 dev eth0 nodad;
             ip link set eth0 up"
        ));
        host.sh(&format!(
            "ip route add default via {WORLD}; ip route add default via {WORLD_6}"
        ));
        Self { host, world }
    }

    /// `kiln build -t TAG CONTEXT` on the machine that builds, whose resolver is on its loopback.
    pub(crate) fn build(&self, env: &TestEnv, tag: &str) -> Run {
        let resolver = env.path("resolv.conf");
        fs::write(&resolver, "nameserver 127.0.0.53\n").unwrap();
        let namespace = format!("--net=/proc/{}/ns/net", self.host.holder.id());
        let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        env.program("nsenter", [namespace.as_str(), "unshare", "--mount"])
            .args(["sh", "-c", script])
            .arg(resolver)
            .arg(env!("CARGO_BIN_EXE_kiln"))
            .args(["build", "-t", tag])
            .arg(env.context())
            .env("KILN_ROOT", env.store())
    }
}

/// A network namespace.
#[derive(Debug)]
pub(crate) struct Machine {
    holder: Child,
}

impl Machine {
    fn new() -> Self {
        // It ends when its standard input does: also when the tests are killed.
        let script = "ip link set lo up && echo ready && exec cat";
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = holder.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self { holder }
    }

    fn sh(&self, script: &str) {
        let namespace = format!("--net=/proc/{}/ns/net", self.holder.id());
        let mut command = Command::new("nsenter");
        let status = command.args([&namespace, "sh", "-ec", script]).status();
        assert!(status.unwrap().success(), "{script}");
    }

    /// Does something in a thread that is on this machine, and waits until that is set up.
    fn serve<S: Send + 'static>(
        &self,
        set_up: impl FnOnce() -> S + Send + 'static,
        run: impl FnOnce(S) + Send + 'static,
    ) {
        let namespace = fs::File::open(format!("/proc/{}/ns/net", self.holder.id())).unwrap();
        let (ready, wait) = mpsc::channel();
        thread::spawn(move || {
            let network = Some(LinkNameSpaceType::Network);
            let fd = std::os::fd::AsFd::as_fd(&namespace);
            move_into_link_name_space(fd, network).unwrap();
            let server = set_up();
            ready.send(()).unwrap();
            run(server);
        });
        wait.recv().unwrap();
    }

    /// Says the same to everyone who connects and asks.
    pub(crate) fn tcp(&self, address: &'static str, words: &'static str) {
        self.serve(
            move || TcpListener::bind(address).unwrap(),
            move |listener| {
                for stream in listener.incoming() {
                    // Who hangs up early does not matter, and who never does is in nobody's way.
                    thread::spawn(move || {
                        stream.and_then(|mut stream| {
                            stream.read_exact(&mut [0])?;
                            stream.write_all(words.as_bytes())?;
                            stream.shutdown(std::net::Shutdown::Write)?;
                            stream.read_to_end(&mut Vec::new())
                        })
                    });
                }
            },
        );
    }

    /// A name server for which every name has the same address.
    pub(crate) fn dns(&self, address: &'static str, answer: [u8; 4]) {
        self.serve(
            move || UdpSocket::bind(address).unwrap(),
            move |socket| {
                let mut query = [0; 512];
                while let Ok((length, from)) = socket.recv_from(&mut query) {
                    let reply = reply(&query[..length], answer);
                    drop(socket.send_to(&reply, from));
                }
            },
        );
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        drop(self.holder.wait());
    }
}

/// The answer to a question for an address: that one; to any other question: nothing.
fn reply(query: &[u8], answer: [u8; 4]) -> Vec<u8> {
    let name = query[12..].iter().position(|&byte| byte == 0).unwrap();
    let question = &query[12..12 + name + 5];
    let address = question.ends_with(&[0, 1, 0, 1]);
    let mut reply = query[..2].to_vec();
    reply.extend([0x81, 0x80, 0, 1, 0, u8::from(address), 0, 0, 0, 0]);
    reply.extend(question);
    if address {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(answer);
    }
    reply
}
