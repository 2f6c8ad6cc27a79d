// Attacks that no shell can make. Exits with 0 when the attack succeeds, else with the number of
// the error that stopped it.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static int result(long value) { return value < 0 ? errno : 0; }

static int connect_abstract(const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(name);
    memcpy(address.sun_path + 1, name, length);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
    return result(connect(fd, (struct sockaddr *)&address, size));
}

static int clone3(uint64_t flags) {
    uint64_t args[11] = {flags, 0, 0, 0, SIGCHLD};
    long pid = syscall(SYS_clone3, args, sizeof args);
    if (pid == 0) _exit(0);
    if (pid > 0) waitpid((pid_t)pid, NULL, 0);
    return result(pid);
}

static int clone2(unsigned long flags) {
    long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(0);
    if (pid > 0) waitpid((pid_t)pid, NULL, 0);
    return result(pid);
}

static int read_memory(pid_t pid) {
    char byte;
    // Reading nothing of another process is refused as reading something is.
    struct iovec local = {&byte, 1}, remote = {(void *)16, 1};
    long got = syscall(SYS_process_vm_readv, pid, &local, 1, &remote, 1, 0);
    return got < 0 && errno == EFAULT ? 0 : result(got);
}

// Opens the root directory of a file system by its number, as `shocker` did.
static int open_by_handle(const char *path) {
    union {
        struct file_handle handle;
        char space[sizeof(struct file_handle) + 8];
    } root = {.handle = {.handle_bytes = 8, .handle_type = 1}};
    uint32_t inode = 2;
    memcpy(root.handle.f_handle, &inode, sizeof inode);
    int fd = open(path, O_RDONLY);
    long opened = syscall(SYS_open_by_handle_at, fd, &root, O_RDONLY);
    return opened < 0 && errno == ESTALE ? 0 : result(opened);
}

static const char *const held = "kiln-attack";
static const int session_keyring = -3;

// Becomes another program with a key in its keyring, as a login has.
static int hold_key(char *const *args) {
    const int join = 1;
    if (syscall(SYS_keyctl, join, NULL) < 0) return errno;
    if (syscall(SYS_add_key, "user", held, "x", 1, session_keyring) < 0) return errno;
    return result(execv(args[0], args));
}

static int find_key(void) {
    const int search = 10;
    return result(syscall(SYS_keyctl, search, session_keyring, "user", held, 0));
}

int main(int argc, char **argv) {
    // In place of kiln, it starts kiln with a key.
    if (argc > 1 && !strcmp(argv[1], "__kiln-sandbox")) {
        argv[0] = KILN;
        return hold_key(argv);
    }
    if (argc < 3) return 255;
    const char *what = argv[1], *with = argv[2];
    unsigned long number = strtoul(with, NULL, 0);
    if (!strcmp(what, "connect")) return connect_abstract(with);
    if (!strcmp(what, "clone")) return clone2(number);
    if (!strcmp(what, "clone3")) return clone3(number);
    if (!strcmp(what, "unshare")) return result(unshare((int)number));
    if (!strcmp(what, "setns")) return result(setns(open(with, O_RDONLY), 0));
    if (!strcmp(what, "kill")) return result(kill((pid_t)number, 0));
    if (!strcmp(what, "ptrace")) return result(ptrace(PTRACE_SEIZE, (pid_t)number, 0, 0));
    if (!strcmp(what, "memory")) return read_memory((pid_t)number);
    if (!strcmp(what, "pidfd")) return result(syscall(SYS_pidfd_open, (pid_t)number, 0));
    if (!strcmp(what, "write")) return result(open(with, O_WRONLY));
    if (!strcmp(what, "hold-key")) return hold_key(argv + 2);
    if (!strcmp(what, "key") && !strcmp(with, "find")) return find_key();
    if (!strcmp(what, "handle")) return open_by_handle(with);
    return 255;
}
