/* safetensors: each way in which a file can be damaged is refused, naming file and tensor; the writer's
 * files come back byte for byte, in the reference writer's order. */
#include "tests/engine/tiny_model.h"
#include "engine/text.h"
#include <errno.h>

/* Three tensors: 24 + 4 + 6 bytes, of which one has size zero and one rank 0. */
static const char good_header[] = "{\"__metadata__\":{\"format\":\"pt\",\"made "
                                  "by\":\"hand\"},\"a.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],"
                                  "\"data_offsets\":[0,24]},\"b\":{\"dtype\":\"I32\",\"shape\":[],\"data_"
                                  "offsets\":[24,28]},\"empty\":{\"dtype\":\"F32\","
                                  "\"shape\":[0,7],\"data_offsets\":[28,28]},\"c\":{\"dtype\":\"BF16\","
                                  "\"shape\":[3],\"data_offsets\":[28,34]}}";
enum { GOOD_DATA = 34 };

/* Writes header (padded to a multiple of 8) and data bytes 0, 1, 2, ... */
static const char *put_file(const char *name, const char *header, size_t n_data) {
    size_t n_header = (strlen(header) + 7) / 8 * 8, n = 8 + n_header + n_data;
    char *bytes = calloc(n, 1);
    for (int i = 0; i < 8; i++) bytes[i] = (char)(n_header >> (8 * i));
    memset(bytes + 8, ' ', n_header);
    memcpy(bytes + 8, header, strlen(header));
    for (size_t i = 0; i < n_data; i++) bytes[8 + n_header + i] = (char)i;
    const char *path = scratch_write(name, bytes, n);
    free(bytes);
    return path;
}

static void expect_refusal(const char *path, const char *says) {
    Error error = {0};
    TensorSet *set = safetensors_open(path, &error);
    if (set) fail_msg("%s: accepted, expected \"%s\"", path, says);
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, says);
    assert_contains(error.text, path);
}

static void test_reads_what_is_there(void **state) {
    (void)state;
    Error error = {0};
    TensorSet *set = safetensors_open(put_file("good", good_header, GOOD_DATA), &error);
    if (!set) fail_msg("%s", error.text);
    assert_int_equal(safetensors_count(set), 4);
    const TensorEntry *a = safetensors_find(set, "a.weight"), *b = safetensors_find(set, "b");
    assert_true(a->dtype == DTYPE_F32 && a->n_dims == 2 && a->shape[0] == 2 && a->shape[1] == 3 &&
                a->n_bytes == 24);
    assert_true(b->dtype == DTYPE_I32 && b->n_dims == 0 && b->n_bytes == 4 && b->dtype_known);
    assert_true(safetensors_find(set, "empty")->n_bytes == 0);
    assert_null(safetensors_find(set, "A.weight"));
    assert_string_equal(safetensors_entry(set, 0)->name, "a.weight");
    assert_string_equal(safetensors_entry(set, 3)->name, "empty");
    unsigned char bytes[6];
    assert_true(safetensors_read(set, safetensors_find(set, "c"), 0, bytes, 6, &error));
    assert_memory_equal(bytes, "\x1c\x1d\x1e\x1f\x20\x21", 6);
    assert_true(safetensors_read(set, b, 1, bytes, 3, &error));
    assert_memory_equal(bytes, "\x19\x1a\x1b", 3);
    assert_false(safetensors_read(set, b, 2, bytes, 3, &error));
    assert_contains(error.text, "tensor b: expected 4 bytes: got a read beyond them");
    assert_string_equal(safetensors_metadata(set, "made by"), "hand");
    assert_null(safetensors_metadata(set, "none"));
    safetensors_close(set);
}

static void test_truncated_or_longer_files_are_refused(void **state) {
    (void)state;
    char path[512];
    snprintf(path, sizeof path, "%s", put_file("cut", good_header, GOOD_DATA));
    size_t n;
    Error error = {0};
    char *bytes = io_read_all(path, 1 << 20, &n, &error);
    for (size_t cut = 0; cut < n; cut++) {
        scratch_write("cut", bytes, cut);
        error = (Error){0};
        TensorSet *set = safetensors_open(path, &error);
        if (set) fail_msg("accepted %zu of %zu bytes", cut, n);
        assert_clean_error(&error, ERROR_BAD_INPUT);
        assert_contains(error.text, path);
        const char *says = cut < 8               ? "expected at least 8 bytes"
                           : cut < n - GOOD_DATA ? "expected a header of 2 to"
                                                 : "expected data within the file's";
        assert_contains(error.text, says);
        if (cut == n - 1) assert_contains(error.text, "cut: c: expected data within");
    }
    char *longer = malloc(n + 1);
    memcpy(longer, bytes, n);
    longer[n] = 0;
    scratch_write("cut", longer, n + 1);
    expect_refusal(path, "expected a file that ends with its last tensor at data byte 34: got 35 bytes");
    free(longer);
    mem_free(bytes);
}

static void test_damaged_headers_are_refused(void **state) {
    (void)state;
#define A(rest) "{\"a\":{\"dtype\":\"F32\"," rest "}"
    static const struct {
        const char *header;
        size_t n_data;
        const char *says;
    } cases[] = {
        {A("\"shape\":[2],\"data_offsets\":[0,7]}"), 7,
         ": a: expected data_offsets that span shape x dtype = 8 bytes: got 7"},
        {A("\"shape\":[2],\"data_offsets\":[0,9]}"), 9, "= 8 bytes: got 9"},
        {A("\"shape\":[2],\"data_offsets\":[4,12]}"), 12, "tensor a: expected its data to begin at 0"},
        {A("\"shape\":[2],\"data_offsets\":[8,0]}"), 8, ": a.data_offsets[1]: expected an integer from 8"},
        {A("\"shape\":[2],\"data_offsets\":[-8,0]}"), 8, ": a.data_offsets[0]: expected an integer from 0"},
        {A("\"shape\":[2],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,"
           "8]}"),
         8,
         "tensor b: expected its data to begin at 8, where the one before ends (no hole, no overlap): got 4"},
        {A("\"shape\":[2],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":["
           "12,16]}"),
         16,
         "tensor b: expected its data to begin at 8, where the one before ends (no hole, no overlap): got "
         "12"},
        {A("\"shape\":[2],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,"
           "8]}"),
         8, "expected its data to begin at 8"},
        {A("\"shape\":[2],\"data_offsets\":[0,8]},\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,"
           "16]}"),
         16, "expected each key once: got \"a\" twice"},
        {A("\"shape\":[2],\"shape\":[2],\"data_offsets\":[0,8]}"), 8,
         ": a: expected each key once: got \"shape\" twice"},
        {A("\"shape\":[2.5],\"data_offsets\":[0,10]}"), 10, ": a.shape[0]: expected an integer from 0"},
        {A("\"shape\":[-2],\"data_offsets\":[0,8]}"), 8, ": a.shape[0]: expected an integer from 0"},
        {A("\"shape\":[1e300],\"data_offsets\":[0,8]}"), 8, ": a.shape[0]: expected an integer from 0"},
        {A("\"shape\":[4294967296,4294967296],\"data_offsets\":[0,8]}"), 8, "got an overflow"},
        {A("\"shape\":[1073741824,1073741824,4],\"data_offsets\":[0,0]}"), 0,
         ": a: expected data_offsets that span"},
        {A("\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}"), 4,
         "expected at most 8 dimensions: got 9"},
        {A("\"shape\":2,\"data_offsets\":[0,8]}"), 8, ": a.shape: expected an array"},
        {A("\"data_offsets\":[0,8]}"), 8, ": a.shape: expected an array"},
        {A("\"shape\":[2]}"), 8, ": a: expected data_offsets of two numbers"},
        {A("\"shape\":[2],\"data_offsets\":[0]}"), 8, "expected data_offsets of two numbers"},
        {A("\"shape\":[2],\"data_offsets\":[0,8,8]}"), 8, "expected data_offsets of two numbers"},
        {A("\"shape\":[2],\"data_offsets\":[0,\"8\"]}"), 8,
         ": a.data_offsets[1]: expected a number: got \"8\""},
        {A("\"shape\":[2],\"data_offsets\":[0,9007199254740994]}"), 8,
         ": a.data_offsets[1]: expected an integer"},
        {"{\"a\":{\"dtype\":\"F33\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
         ": a.dtype: expected a safetensors dtype: got \"F33\""},
        {"{\"a\":{\"dtype\":32,\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
         ": a.dtype: expected a string: got 32"},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1,
         ": a: expected data_offsets that span"},
        {"{\"a\":[1]}", 0, ": a: expected an object"},
        {"{\"__metadata__\":{\"format\":7}}", 0, ": __metadata__.format: expected a string: got 7"},
        {"{\"__metadata__\":[]}", 0, ": __metadata__: expected an object of strings"},
        {"{\"a\":1e999}", 0, ": a: expected a finite number"},
        {"{} {}", 0, "expected JSON: got text after the value"},
        {"[1,2]", 0, "expected a header that begins with {"},
        {" {\"a\":1}", 0, "expected a header that begins with {"},
        {"{}", 8, "expected a file that ends with its last tensor at data byte 0: got 8 bytes"},
        {"{\"a\\u0000\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "\\u0000 in a string"},
        {"{\"a\xff\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "invalid UTF-8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_refusal(put_file("damaged", cases[i].header, cases[i].n_data), cases[i].says);
}

static void test_header_lengths(void **state) {
    (void)state;
    static const unsigned long long lengths[] = {
        0, 1, 9, 100000001, 0x7fffffffffffffff, 0xfffffffffffffff8, 0xffffffffffffffff};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        char bytes[16] = "        {}      ";
        for (int k = 0; k < 8; k++) bytes[k] = (char)(lengths[i] >> (8 * k));
        expect_refusal(scratch_write("length", bytes, 16), "expected a header of 2 to 8 bytes: got ");
    }
    /* larger than the limit, in a file that is large enough (sparse) */
    char bytes[8] = {(char)(100000001 & 255), (char)(100000001 >> 8 & 255), (char)(100000001 >> 16 & 255),
                     (char)(100000001 >> 24)};
    const char *path = scratch_write("length", bytes, 8);
    assert_int_equal(truncate(path, 200000000), 0);
    expect_refusal(path, "expected a header of 2 to 100000000 bytes: got 100000001");
}

static void test_any_byte_of_the_header_may_flip(void **state) {
    (void)state;
    char path[512];
    snprintf(path, sizeof path, "%s", put_file("flips", good_header, GOOD_DATA));
    size_t n;
    Error error = {0};
    char *bytes = io_read_all(path, 1 << 20, &n, &error);
    int n_refused = 0;
    for (size_t i = 0; i < n - GOOD_DATA; i++) {
        for (int bit = 0; bit < 8; bit++) {
            bytes[i] ^= (char)(1 << bit);
            scratch_write("flips", bytes, n);
            error = (Error){0};
            TensorSet *set = safetensors_open(path, &error);
            if (!set) assert_clean_error(&error, ERROR_BAD_INPUT);
            for (int64_t k = 0; set && k < safetensors_count(set); k++) {
                const TensorEntry *entry = safetensors_entry(set, k);
                char *data = malloc(entry->n_bytes + 1);
                assert_true(safetensors_read(set, entry, 0, data, entry->n_bytes, &error));
                free(data);
            }
            n_refused += !set;
            safetensors_close(set);
            bytes[i] ^= (char)(1 << bit);
        }
    }
    assert_true(n_refused > 1000); /* letters of names and of the metadata may change */
    mem_free(bytes);
}

/* ---- shards ---- */
static const char shard_a[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
                  shard_b[] = "{\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";

static void put_index(const char *map) {
    char text[1000];
    snprintf(text, sizeof text, "{\"metadata\":{\"total_size\":12.0},\"weight_map\":%s}", map);
    scratch_write_text("s/model.safetensors.index.json", text);
}

static void test_shards(void **state) {
    (void)state;
    Error error = {0};
    scratch_make_folder("s");
    put_file("s/x.safetensors", shard_a, 8);
    put_file("s/y.safetensors", shard_b, 4);
    put_file("x.safetensors", shard_a, 8);
    put_index("{\"a\":\"x.safetensors\",\"b\":\"y.safetensors\"}");
    TensorSet *set = safetensors_open(scratch_path("s"), &error);
    if (!set) fail_msg("%s", error.text);
    assert_int_equal(safetensors_count(set), 2);
    assert_string_equal(safetensors_file(set, safetensors_find(set, "b")), scratch_path("s/y.safetensors"));
    safetensors_close(set);
    static const struct {
        const char *map, *says;
    } cases[] = {
        {"{\"a\":\"x.safetensors\",\"b\":\"x.safetensors\"}",
         "weight_map.b: expected the tensor in file x.safetensors: got none"},
        {"{\"a\":\"y.safetensors\",\"b\":\"x.safetensors\"}",
         "weight_map.a: expected the tensor in file y.safetensors: got it in "},
        {"{\"a\":\"x.safetensors\",\"b\":\"y.safetensors\",\"c\":\"y.safetensors\"}",
         "weight_map.c: expected the tensor in file y.safetensors: got none"},
        {"{\"a\":\"x.safetensors\",\"b\":\"z.safetensors\"}", "s/z.safetensors: expected a readable file"},
        {"{\"b\":\"y.safetensors\",\"a\":\"../x.safetensors\"}",
         "weight_map.a: expected a plain file name: got \"../x.safetensors\""},
        {"{\"a\":\"/etc/passwd\"}", "expected a plain file name: got \"/etc/passwd\""},
        {"{\"a\":\"..\"}", "expected a plain file name: got \"..\""},
        {"{\"a\":\"\"}", "expected a plain file name: got \"\""},
        {"{\"a\":\"x\\\\y\"}", "expected a plain file name"},
        {"{\"a\":\"./x.safetensors\"}", "expected a plain file name"},
        {"{\"a\":7}", "weight_map.a: expected a string: got 7"},
        {"[]", "expected weight_map, an object"},
        {"{\"a\":\"x.safetensors\",\"a\":\"y.safetensors\"}",
         "weight_map: expected each key once: got \"a\" twice"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        error = (Error){0};
        put_index(cases[i].map);
        set = safetensors_open(scratch_path("s"), &error);
        if (set) fail_msg("accepted %s", cases[i].map);
        assert_clean_error(&error, ERROR_BAD_INPUT);
        assert_contains(error.text, cases[i].says);
    }
    put_file("s/y.safetensors", shard_a, 8);
    put_index("{\"a\":\"x.safetensors\",\"b\":\"y.safetensors\"}");
    error = (Error){0};
    assert_null(safetensors_open(scratch_path("s"), &error));
    assert_contains(error.text, "tensor a: expected it in one file: got it in ");
    put_file("s/y.safetensors",
             "{\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"unlisted\":{\"dtype\":"
             "\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
             8);
    error = (Error){0};
    assert_null(safetensors_open(scratch_path("s"), &error));
    assert_contains(error.text, "weight_map: expected all 3 tensors of the files: got 2");
    put_file("s/model.safetensors", shard_a, 8);
    error = (Error){0};
    set = safetensors_open(scratch_path("s"), &error);
    assert_int_equal(safetensors_count(set), 1); /* one file goes before an index, as in transformers */
    safetensors_close(set);
}

static void test_special_files_are_refused(void **state) {
    (void)state;
    scratch_make_folder("special");
    assert_int_equal(mkfifo(scratch_path("special/model.safetensors"), 0600), 0);
    expect_refusal(scratch_path("special/model.safetensors"), "expected a regular file: got a special file");
    unlink(scratch_path("special/model.safetensors"));
    scratch_make_folder("special/model.safetensors");
    Error error = {0};
    assert_null(safetensors_open(scratch_path("special"), &error));
    assert_contains(error.text, "expected a regular file: got a folder");
}

static void test_a_file_cut_while_open_is_an_error(void **state) {
    (void)state;
    Error error = {0};
    const char *path = put_file("live", good_header, GOOD_DATA);
    TensorSet *set = safetensors_open(path, &error);
    struct stat about;
    assert_int_equal(stat(path, &about), 0);
    assert_int_equal(truncate(path, about.st_size - 1), 0);
    char bytes[24];
    assert_true(safetensors_read(set, safetensors_find(set, "a.weight"), 0, bytes, 24, &error));
    assert_false(safetensors_read(set, safetensors_find(set, "c"), 0, bytes, 6, &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, "tensor c: ");
    assert_contains(error.text, "got the end of the file");
    safetensors_close(set);
}

/* ---- writing ---- */
static void test_writes_in_the_reference_order(void **state) {
    (void)state;
    float f[6] = {1, 2, 3, 4, 5, 6};
    int64_t wide[2] = {7, 8};
    uint16_t half[3] = {9, 10, 11};
    double d = 12;
    int32_t i = 13;
    const NamedTensor tensors[] = {{"z", tensor_matrix(f, DTYPE_F32, 2, 3)},
                                   {"half", tensor_vector(half, DTYPE_F16, 3)},
                                   {"a\"\n\xc3\xa9", tensor_vector(f, DTYPE_F32, 1)},
                                   {"wide", tensor_vector(wide, DTYPE_I64, 2)},
                                   {"d", tensor_vector(&d, DTYPE_F64, 1)},
                                   {"brain", tensor_vector(half, DTYPE_BF16, 2)},
                                   {"i", {&i, DTYPE_I32, 0, {0}}},
                                   {"none", tensor_matrix(NULL, DTYPE_F32, 0, 4)}};
    const char *const metadata[] = {"rank", "8"};
    Error error = {0};
    const char *path = scratch_path("written");
    if (!safetensors_write(path, tensors, 8, metadata, 1, &error)) fail_msg("%s", error.text);
    TensorSet *set = safetensors_open(path, &error);
    if (!set) fail_msg("%s", error.text);
    assert_string_equal(safetensors_metadata(set, "format"), "pt");
    assert_string_equal(safetensors_metadata(set, "rank"), "8");
    static const char *const order[] = {"wide", "d", "a\"\n\xc3\xa9", "none", "z", "i", "brain", "half"};
    uint64_t at = 0;
    for (int k = 0; k < 8; k++) {
        const TensorEntry *entry = safetensors_find(set, order[k]);
        if (!entry) fail_msg("no %s", order[k]);
        if (entry->offset != at) fail_msg("%s stands at %d", order[k], (int)entry->offset);
        at += entry->n_bytes;
    }
    for (int k = 0; k < 8; k++) {
        const TensorEntry *entry = safetensors_find(set, tensors[k].name);
        char bytes[64];
        assert_true(entry->dtype == tensors[k].tensor.dtype && entry->n_dims == tensors[k].tensor.n_dims);
        assert_int_equal(entry->n_bytes, tensor_bytes(tensors[k].tensor));
        assert_true(safetensors_read(set, entry, 0, bytes, entry->n_bytes, &error));
        if (entry->n_bytes) assert_memory_equal(bytes, tensors[k].tensor.data, entry->n_bytes);
    }
    safetensors_close(set);
    size_t n;
    char *bytes = io_read_all(path, 1 << 20, &n, &error);
    assert_int_equal((unsigned char)bytes[0] % 8, 0);
    assert_int_equal(n, 8 + (size_t)(unsigned char)bytes[0] + 256 * (size_t)(unsigned char)bytes[1] + at);
    mem_free(bytes);
}

/* Files of the reference writer come out of ours byte for byte. */
static void test_rewrites_golden_files(void **state) {
    (void)state;
    static const char *const names[] = {"mixtral/model", "mixtral/expected", "qwen3_moe_dense_layer/model"};
    for (int g = 0; g < 3; g++) {
        char path[512];
        Error error = {0};
        snprintf(path, sizeof path, SOURCE_DIR "/tests/golden/%s.safetensors", names[g]);
        TensorSet *set = safetensors_open(path, &error);
        if (!set) fail_msg("%s", error.text);
        int64_t n = safetensors_count(set);
        NamedTensor *tensors = calloc((size_t)n, sizeof *tensors);
        for (int64_t k = 0; k < n; k++) {
            const TensorEntry *entry = safetensors_entry(set, k);
            tensors[k].name = entry->name;
            tensors[k].tensor = (Tensor){malloc(entry->n_bytes), entry->dtype, entry->n_dims, {0}};
            memcpy(tensors[k].tensor.shape, entry->shape, sizeof tensors[k].tensor.shape);
            assert_true(safetensors_read(set, entry, 0, tensors[k].tensor.data, entry->n_bytes, &error));
        }
        assert_true(safetensors_write(scratch_path("again"), tensors, n, NULL, 0, &error));
        size_t n_old, n_new;
        char *old_bytes = io_read_all(path, 1 << 26, &n_old, &error),
             *new_bytes = io_read_all(scratch_path("again"), 1 << 26, &n_new, &error);
        bool same_metadata = safetensors_metadata(set, "format") != NULL;
        if (same_metadata) assert_true(n_old == n_new && !memcmp(old_bytes, new_bytes, n_old));
        uint64_t h_old = 0, h_new = 0;
        memcpy(&h_old, old_bytes, 8);
        memcpy(&h_new, new_bytes, 8);
        assert_true(n_old - h_old == n_new - h_new &&
                    !memcmp(old_bytes + 8 + h_old, new_bytes + 8 + h_new, n_new - 8 - h_new));
        mem_free(old_bytes);
        mem_free(new_bytes);
        for (int64_t k = 0; k < n; k++) free(tensors[k].tensor.data);
        free(tensors);
        safetensors_close(set);
    }
}

/* ---- faults ---- */
static bool open_scenario(void *context, Error *error) {
    TensorSet *set = safetensors_open(context, error);
    if (!set) return false;
    char bytes[8];
    bool fine = safetensors_read(set, safetensors_entry(set, 0), 0, bytes, 8, error);
    safetensors_close(set);
    return fine;
}

static bool write_scenario(void *context, Error *error) {
    float f[6] = {1, 2, 3, 4, 5, 6};
    const NamedTensor tensors[] = {{"z", tensor_matrix(f, DTYPE_F32, 2, 3)},
                                   {"y", tensor_vector(f, DTYPE_F32, 1)}};
    return safetensors_write(context, tensors, 2, NULL, 0, error);
}

static void test_each_fault_is_a_clean_error(void **state) {
    (void)state;
    char path[512];
    scratch_make_folder("f");
    put_file("f/x.safetensors", shard_a, 8);
    put_file("f/y.safetensors", shard_b, 4);
    scratch_write_text("f/model.safetensors.index.json",
                       "{\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"y.safetensors\"}}");
    snprintf(path, sizeof path, "%s", scratch_path("f"));
    assert_true(fail_each_allocation(open_scenario, path) > 100);
    assert_true(fail_each_file_call(open_scenario, path, EIO) >= 20);
    fail_each_file_call(open_scenario, path, EMFILE);
    scratch_make_folder("w");
    snprintf(path, sizeof path, "%s", scratch_path("w/new"));
    assert_true(fail_each_allocation(write_scenario, path) > 10);
    unlink(path);
    fail_each_file_call(write_scenario, path, ENOSPC);
    assert_true(scratch_count(scratch_path("w")) <= 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_what_is_there),
        cmocka_unit_test(test_truncated_or_longer_files_are_refused),
        cmocka_unit_test(test_damaged_headers_are_refused),
        cmocka_unit_test(test_header_lengths),
        cmocka_unit_test(test_any_byte_of_the_header_may_flip),
        cmocka_unit_test(test_shards),
        cmocka_unit_test(test_special_files_are_refused),
        cmocka_unit_test(test_a_file_cut_while_open_is_an_error),
        cmocka_unit_test(test_writes_in_the_reference_order),
        cmocka_unit_test(test_rewrites_golden_files),
        cmocka_unit_test(test_each_fault_is_a_clean_error),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}
