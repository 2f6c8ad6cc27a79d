//! Programs that make one system call and exit with its error number, written as machine code, so
//! that no compiler and no library stands between the test and the kernel.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Writes an executable file.
pub(crate) fn write(path: &Path, program: &[u8]) {
    fs::write(path, program).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// For x86-64: one argument, the others are 0.
pub(crate) fn amd64(number: u32, argument: u64) -> Vec<u8> {
    let mut code = vec![0x48, 0xbf]; // mov rdi, argument
    code.extend(argument.to_le_bytes());
    code.extend([0x31, 0xf6]); // xor esi, esi
    code.extend([0x31, 0xd2]); // xor edx, edx
    code.extend([0x4d, 0x31, 0xd2]); // xor r10, r10
    code.extend([0x4d, 0x31, 0xc0]); // xor r8, r8
    code.push(0xb8); // mov eax, number
    code.extend(number.to_le_bytes());
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0x31, 0xff]); // xor edi, edi
    code.extend([0x48, 0x85, 0xc0]); // test rax, rax
    code.extend([0x79, 0x04]); // jns over the next two
    code.extend([0xf7, 0xd8]); // neg eax
    code.extend([0x89, 0xc7]); // mov edi, eax
    code.extend([0xb8, 60, 0, 0, 0]); // mov eax, exit
    code.extend([0x0f, 0x05]); // syscall

    let (base, header) = (0x40_0000u64, 120u64);
    let size = header + code.len() as u64;
    let mut file = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version
    for field in [base + header, 64, 0] {
        file.extend(field.to_le_bytes()); // entry, program headers, section headers
    }
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]); // load, read and execute
    for field in [0, base, base, size, size, 0x1000] {
        file.extend(field.to_le_bytes());
    }
    file.extend(code);
    file
}

/// For i386: one argument, the others are 0.
pub(crate) fn i386(number: u32, argument: u32) -> Vec<u8> {
    let mut code = vec![0xbb]; // mov ebx, argument
    code.extend(argument.to_le_bytes());
    code.extend([0x31, 0xc9]); // xor ecx, ecx
    code.extend([0x31, 0xd2]); // xor edx, edx
    code.extend([0x31, 0xf6]); // xor esi, esi
    code.extend([0x31, 0xff]); // xor edi, edi
    code.push(0xb8); // mov eax, number
    code.extend(number.to_le_bytes());
    code.extend([0xcd, 0x80]); // int 0x80
    code.extend([0x31, 0xdb]); // xor ebx, ebx
    code.extend([0x85, 0xc0]); // test eax, eax
    code.extend([0x79, 0x04]); // jns over the next two
    code.extend([0xf7, 0xd8]); // neg eax
    code.extend([0x89, 0xc3]); // mov ebx, eax
    code.extend([0xb8, 1, 0, 0, 0]); // mov eax, exit
    code.extend([0xcd, 0x80]); // int 0x80

    let (base, header) = (0x40_0000u32, 84u32);
    let size = header + u32::try_from(code.len()).unwrap();
    let mut file = Vec::from(*b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2, 0, 3, 0, 1, 0, 0, 0]); // executable, i386, version
    for field in [base + header, 52, 0, 0] {
        file.extend(field.to_le_bytes());
    }
    file.extend([52, 0, 32, 0, 1, 0, 40, 0, 0, 0, 0, 0]);
    for field in [1, 0, base, base, size, size, 5, 0x1000] {
        file.extend(field.to_le_bytes());
    }
    file.extend(code);
    file
}
