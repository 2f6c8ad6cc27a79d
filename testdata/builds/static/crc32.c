/* Prints the CRC-32 (IEEE 802.3) of standard input and its length. */
#include <stdint.h>
#include <stdio.h>

int main(void) {
    uint32_t table[256], crc = 0xffffffffu;
    unsigned long long size = 0;
    unsigned char buffer[65536];
    size_t n;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
        table[i] = c;
    }
    while ((n = fread(buffer, 1, sizeof buffer, stdin)) > 0) {
        size += n;
        for (size_t i = 0; i < n; i++) crc = table[(crc ^ buffer[i]) & 0xff] ^ (crc >> 8);
    }
    if (ferror(stdin)) {
        perror("crc32: standard input");
        return 1;
    }
    printf("%08x %llu\n", (unsigned)(crc ^ 0xffffffffu), size);
    return 0;
}
