/*
 * Tests of the mapped-ram layout
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The golden bytes are what QEMU 10.0.2 writes: do not change them to make a
 * test pass.
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/bswap.h"
#include "qapi/error.h"
#include "migration/mapped-ram-layout.h"

#define PAGE 4096

static MappedRamLayout init_ok(uint64_t header_offset, uint64_t length)
{
    MappedRamLayout l;

    g_assert_true(mapped_ram_layout_init(&l, "pc.ram", header_offset, length,
                                         PAGE, &error_abort));
    return l;
}

/* Check that an error is set, names the block and contains @needle. */
static void expect_error(bool ok, Error *err, const char *needle)
{
    g_assert_false(ok);
    g_assert_nonnull(err);
    g_assert_nonnull(strstr(error_get_pretty(err), "'pc.ram'"));
    if (!strstr(error_get_pretty(err), needle)) {
        g_test_message("got: %s", error_get_pretty(err));
        g_assert_not_reached();
    }
    error_free(err);
}

static void test_golden(void)
{
    /* 128 MiB of pc.ram behind a stream of 0x49 bytes */
    static const uint8_t golden[MAPPED_RAM_HEADER_SIZE] = {
        0x00, 0x00, 0x00, 0x01,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x65,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00,
    };
    uint8_t buf[MAPPED_RAM_HEADER_SIZE];
    MappedRamLayout l = init_ok(0x49, 128 * MiB);

    g_assert_cmpuint(l.bitmap_offset, ==, 0x65);
    g_assert_cmpuint(mapped_ram_layout_pages(&l), ==, 32768);
    g_assert_cmpuint(mapped_ram_layout_bitmap_size(&l), ==, 4096);
    g_assert_cmpuint(l.pages_offset, ==, 1 * MiB);
    g_assert_cmpuint(mapped_ram_layout_end(&l), ==, 129 * MiB);
    mapped_ram_header_encode(&l, buf);
    g_assert_cmpmem(buf, sizeof(buf), golden, sizeof(golden));
}

static void test_offsets(void)
{
    MappedRamLayout l;

    /* a bitmap that just fits below the first MiB, and one that doesn't */
    l = init_ok(1 * MiB - MAPPED_RAM_HEADER_SIZE - 8, 64 * PAGE);
    g_assert_cmpuint(l.pages_offset, ==, 1 * MiB);
    l = init_ok(1 * MiB - MAPPED_RAM_HEADER_SIZE - 8, 65 * PAGE);
    g_assert_cmpuint(l.pages_offset, ==, 2 * MiB);

    /* a bitmap larger than the alignment: 2 MiB for 64 GiB */
    l = init_ok(100, 64 * GiB);
    g_assert_cmpuint(mapped_ram_layout_bitmap_size(&l), ==, 2 * MiB);
    g_assert_cmpuint(l.pages_offset, ==, 3 * MiB);

    /* the largest offsets do not wrap */
    l = init_ok(MAPPED_RAM_MAX, MAPPED_RAM_MAX);
    g_assert_cmpuint(l.pages_offset, >, l.bitmap_offset);
    g_assert_cmpuint(mapped_ram_layout_end(&l), >, l.pages_offset);
    g_assert_cmpuint(mapped_ram_layout_end(&l), <, INT64_MAX);

    /* an empty block has a header and no bitmap */
    l = init_ok(0, 0);
    g_assert_cmpuint(mapped_ram_layout_bitmap_size(&l), ==, 0);
    g_assert_cmpuint(mapped_ram_layout_end(&l), ==, 1 * MiB);
}

static void test_init_refusals(void)
{
    static const struct {
        uint64_t offset, length, page_size;
        const char *needle;
    } bad[] = {
        { 0, PAGE, 0, "pages of 0 bytes" },
        { 0, PAGE, 3000, "whole number of pages" },
        { 0, PAGE + 1, PAGE, "whole number of pages" },
        { 0, MAPPED_RAM_MAX + PAGE, PAGE, "too large" },
        { MAPPED_RAM_MAX + 1, PAGE, PAGE, "too large" },
        { UINT64_MAX, PAGE, PAGE, "too large" },
        { 0, UINT64_MAX - PAGE + 1, PAGE, "too large" },
    };

    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        MappedRamLayout l;
        Error *err = NULL;
        bool ok = mapped_ram_layout_init(&l, "pc.ram", bad[i].offset,
                                         bad[i].length, bad[i].page_size,
                                         &err);

        expect_error(ok, err, bad[i].needle);
    }
}

static void test_roundtrip(void)
{
    static const uint64_t lengths[] = {
        PAGE, 63 * PAGE, 64 * PAGE, 65 * PAGE, 192 * KiB, 128 * MiB, 4 * GiB,
        12 * TiB,
    };

    for (int i = 0; i < ARRAY_SIZE(lengths); i++) {
        MappedRamLayout in = init_ok(12345, lengths[i]), out;
        uint8_t buf[MAPPED_RAM_HEADER_SIZE];

        mapped_ram_header_encode(&in, buf);
        /* one byte short of the end is refused below */
        g_assert_true(mapped_ram_header_decode(&out, "pc.ram", buf, 12345,
                                               lengths[i], PAGE,
                                               mapped_ram_layout_end(&in),
                                               &error_abort));
        g_assert_cmpmem(&in, sizeof(in), &out, sizeof(out));
    }
}

/* Decodes a good header after one change; @field < 0 changes nothing. */
static bool decode_changed(int field, uint64_t value, uint64_t file_size,
                           Error **errp)
{
    MappedRamLayout l = init_ok(0x49, 128 * MiB), out;
    uint8_t buf[MAPPED_RAM_HEADER_SIZE];

    mapped_ram_header_encode(&l, buf);
    if (field == 0) {
        stl_be_p(buf, value);
    } else if (field > 0) {
        stq_be_p(buf + field, value);
    }
    return mapped_ram_header_decode(&out, "pc.ram", buf, 0x49, 128 * MiB,
                                    PAGE, file_size, errp);
}

static void test_decode_refusals(void)
{
    static const struct {
        int field;
        uint64_t value;
        uint64_t file_size;
        const char *needle;
    } bad[] = {
        { 0, 0, 0, "version 0" },
        { 0, 2, 0, "version 2" },
        { 0, UINT32_MAX, 0, "version 4294967295" },
        { 4, 0, 0, "page size 0" },
        { 4, 1, 0, "page size 1" },
        { 4, 8192, 0, "page size 8192" },
        { 4, UINT64_MAX, 0, "page size" },
        { 12, 0, 0, "bitmap offset 0" },
        { 12, 0x49, 0, "bitmap offset 73" },
        { 12, 0x66, 0, "bitmap offset 102" },
        { 12, UINT64_MAX, 0, "bitmap offset" },
        { 12, 1ULL << 63, 0, "bitmap offset" },
        { 20, 0, 0, "pages offset 0" },
        { 20, 0x49, 0, "pages offset 73" },
        { 20, 1 * MiB + PAGE, 0, "pages offset" },
        { 20, 2 * MiB, 0, "pages offset" },
        { 20, UINT64_MAX, 0, "pages offset" },
        { 20, 1ULL << 63, 0, "pages offset" },
        { -1, 0, 129 * MiB - 1, "truncated" },
        { -1, 0, 1, "truncated" },
    };
    Error *err = NULL;

    g_assert_true(decode_changed(-1, 0, 0, &error_abort));
    g_assert_true(decode_changed(-1, 0, 129 * MiB, &error_abort));
    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        bool ok = decode_changed(bad[i].field, bad[i].value,
                                 bad[i].file_size, &err);

        expect_error(ok, err, bad[i].needle);
        err = NULL;
    }
}

/* A header with any single bit flipped is refused. */
static void test_every_bit(void)
{
    MappedRamLayout l = init_ok(0x49, 128 * MiB), out;

    for (int bit = 0; bit < MAPPED_RAM_HEADER_SIZE * 8; bit++) {
        uint8_t buf[MAPPED_RAM_HEADER_SIZE];
        Error *err = NULL;
        bool ok;

        mapped_ram_header_encode(&l, buf);
        buf[bit / 8] ^= 1 << (bit % 8);
        ok = mapped_ram_header_decode(&out, "pc.ram", buf, 0x49, 128 * MiB,
                                      PAGE, 129 * MiB, &err);
        expect_error(ok, err, "header at file offset 73");
    }
}

static void test_bitmap(void)
{
    MappedRamLayout l = init_ok(0, 70 * PAGE);
    unsigned long *bitmap = bitmap_new(128);
    Error *err = NULL;
    bool ok;

    g_assert_cmpuint(mapped_ram_layout_bitmap_size(&l), ==, 16);
    bitmap_set(bitmap, 0, 70);
    g_assert_true(mapped_ram_bitmap_check(&l, "pc.ram", bitmap, &error_abort));
    set_bit(70, bitmap);
    ok = mapped_ram_bitmap_check(&l, "pc.ram", bitmap, &err);
    expect_error(ok, err, "has page 70");
    clear_bit(70, bitmap);
    set_bit(127, bitmap);
    err = NULL;
    ok = mapped_ram_bitmap_check(&l, "pc.ram", bitmap, &err);
    expect_error(ok, err, "has page 127");
    g_free(bitmap);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/mapped-ram-layout/golden", test_golden);
    g_test_add_func("/mapped-ram-layout/offsets", test_offsets);
    g_test_add_func("/mapped-ram-layout/init-refusals", test_init_refusals);
    g_test_add_func("/mapped-ram-layout/roundtrip", test_roundtrip);
    g_test_add_func("/mapped-ram-layout/decode-refusals", test_decode_refusals);
    g_test_add_func("/mapped-ram-layout/every-bit", test_every_bit);
    g_test_add_func("/mapped-ram-layout/bitmap", test_bitmap);
    return g_test_run();
}
