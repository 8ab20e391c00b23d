//! A guest that writes a pattern over its RAM and checks it, round after round.
//!
//! A multiboot image, assembled by hand. It says `R` on the first serial port when it starts, `.`
//! after each good round, `D` at the end and `X` when a page is wrong; then it ends QEMU through
//! isa-debug-exit.

use std::path::{Path, PathBuf};

/// QEMU's exit code when all rounds were good: isa-debug-exit makes `(0x10 << 1) | 1` of it.
pub const GOOD: i32 = 0x21;
/// QEMU's exit code when a page was wrong.
pub const WRONG: i32 = 0x41;
/// Where the pattern starts; the program itself lies at 1 MiB.
pub const FIRST: u32 = 2 << 20;

/// What QEMU needs besides the image.
pub const ARGUMENTS: [&str; 11] = [
    "-nodefaults",
    "-display",
    "none",
    "-vga",
    "none",
    "-serial",
    "stdio",
    "-no-reboot",
    "-device",
    "isa-debug-exit,iobase=0xf4,iosize=1",
    "-kernel",
];

#[rustfmt::skip]
const IMAGE: [u8; 146] = [
    // multiboot header: magic, flags (addresses are given), checksum
    0x02, 0xb0, 0xad, 0x1b, 0x00, 0x00, 0x01, 0x00, 0xfe, 0x4f, 0x51, 0xe4,
    // header and load address 1 MiB, load all, no bss, entry
    0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x28, 0x00, 0x10, 0x00,
    // 0x20: end of the pattern; 0x24: rounds, 0 for ever
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    // entry
    0x66, 0xba, 0xf8, 0x03,             //   mov   $0x3f8, %dx
    0xb0, 0x52, 0xee,                   //   'R' -> serial
    0x31, 0xed,                         //   xor   %ebp, %ebp         round = 0
    0x8b, 0x1d, 0x20, 0x00, 0x10, 0x00, //   mov   end, %ebx
    0x8b, 0x0d, 0x24, 0x00, 0x10, 0x00, //   mov   rounds, %ecx
    // round:
    0x45,                               //   inc   %ebp
    0xbf, 0x00, 0x00, 0x20, 0x00,       //   mov   $FIRST, %edi
    // write:
    0x89, 0xf8,                         //   mov   %edi, %eax
    0x31, 0xe8,                         //   xor   %ebp, %eax         address ^ round
    0x89, 0x07,                         //   mov   %eax, (%edi)       first and
    0x89, 0x87, 0xfc, 0x0f, 0x00, 0x00, //   mov   %eax, 4092(%edi)   last word of the page
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, //   add   $4096, %edi
    0x39, 0xdf, 0x72, 0xea,             //   cmp   %ebx, %edi; jb write
    0xbf, 0x00, 0x00, 0x20, 0x00,       //   mov   $FIRST, %edi
    // check:
    0x89, 0xf8,                         //   mov   %edi, %eax
    0x31, 0xe8,                         //   xor   %ebp, %eax
    0x39, 0x07, 0x75, 0x23,             //   cmp   %eax, (%edi); jne bad
    0x39, 0x87, 0xfc, 0x0f, 0x00, 0x00, 0x75, 0x1b,
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, //   add   $4096, %edi
    0x39, 0xdf, 0x72, 0xe6,             //   cmp   %ebx, %edi; jb check
    0xb0, 0x2e, 0xee,                   //   '.' -> serial
    0x39, 0xcd, 0x75, 0xbe,             //   cmp   %ecx, %ebp; jne round
    0xb0, 0x44, 0xee,                   //   'D' -> serial
    0xb0, 0x10, 0xe6, 0xf4,             //   0x10 -> debug exit
    0xf4, 0xeb, 0xfd,                   //   hlt; jmp .
    // bad:
    0xb0, 0x58, 0xee,                   //   'X' -> serial
    0xb0, 0x20, 0xe6, 0xf4,             //   0x20 -> debug exit
    0xeb, 0xf4,                         //   jmp hlt
];

/// The image for a guest that uses its RAM up to `end` bytes, `rounds` times (0 for ever).
pub fn image(end: u32, rounds: u32) -> Vec<u8> {
    let mut image = IMAGE.to_vec();
    image[0x20..0x24].copy_from_slice(&end.to_le_bytes());
    image[0x24..0x28].copy_from_slice(&rounds.to_le_bytes());
    image
}

/// Writes the image into `directory`, readable for every user.
pub fn write_image(directory: &Path, end: u32, rounds: u32) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = directory.join(format!("guest-{end:x}-{rounds}"));
    std::fs::write(&path, image(end, rounds)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    path
}
