/* SPDX-License-Identifier: MIT
   mutate_gguf.h - changes a model's input (fuzz.c) in one sensible way and keeps the rest valid: a number, a string's
   length, an array's elements, an entry's place, a tensor's type, or one size wherever it stands. What cannot be read
   as GGUF any more is changed byte by byte. */

enum { FIELDS = 1024, ENTRIES = 512 };

typedef enum { NUMBER, KIND, STRING, COUNT, DIMENSION, OFFSET } FieldKind;

typedef struct {
    FieldKind kind; /* STRING: the length, the text follows */
    size_t at;
    int size;       /* bytes of the number */
} Field;

typedef struct {
    uint8_t *data;
    size_t size, limit;
    size_t starts[ENTRIES + 1]; /* metadata entries, then tensors, then the end */
    int entries, metadata;
    Field fields[FIELDS];       /* of the entry that was read last */
    int field_count;
    bool bad;
    uint32_t random;
} Mutation;

static uint32_t next_random(Mutation *m, uint32_t below) {
    m->random = m->random * 1664525u + 1013904223u;
    return below == 0 ? 0 : (m->random >> 8) % below;
}

static uint64_t number_at(const Mutation *m, size_t at, int size) {
    return view_number((StringView){(const char *)m->data + at, (size_t)size}, 0, size, false);
}

static void put_number(Mutation *m, size_t at, int size, uint64_t value) {
    for (int i = 0; i < size; i++) m->data[at + (size_t)i] = (uint8_t)(value >> (8 * i));
}

/* Reads a number and notes its place; *at moves behind it. */
static uint64_t take(Mutation *m, size_t *at, FieldKind kind, int size) {
    const Field field = {kind, *at, size};
    if (m->bad || (size_t)size > m->size - *at) {
        m->bad = true;
        return 0;
    }
    if (m->field_count < FIELDS) m->fields[m->field_count++] = field;
    *at += (size_t)size;
    return number_at(m, field.at, size);
}

static void take_string(Mutation *m, size_t *at) {
    const uint64_t length = take(m, at, STRING, 8);
    if (m->bad || length > m->size - *at) m->bad = true;
    else *at += (size_t)length;
}

/* Notes the fields of the entry at `at` and returns where the next one begins. */
static size_t read_entry(Mutation *m, size_t at, bool tensor) {
    uint64_t count = 1;
    m->field_count = 0;
    take_string(m, &at);
    if (tensor) {
        count = take(m, &at, COUNT, 4);
        for (uint64_t i = 0; i < count && i < 8; i++) take(m, &at, DIMENSION, 8);
        take(m, &at, KIND, 4);
        take(m, &at, OFFSET, 8);
        return at;
    }
    uint32_t type = (uint32_t)take(m, &at, KIND, 4);
    if (type == GGUF_ARRAY) {
        type = (uint32_t)take(m, &at, KIND, 4);
        count = take(m, &at, COUNT, 8);
    }
    const int bytes = gguf_type_bytes(type);
    if (type != GGUF_STRING && bytes == 0) m->bad = true;
    for (uint64_t i = 0; i < count && !m->bad; i++) {
        if (type == GGUF_STRING) take_string(m, &at);
        else take(m, &at, NUMBER, bytes);
    }
    return at;
}

/* Finds all entries. Returns false if this is no GGUF any more. */
static bool read_entries(Mutation *m) {
    enum { HEADER = 1 + 4 + 4 + 8 + 8 };
    if (m->size < HEADER) return false;
    const uint64_t tensors = number_at(m, 9, 8), metadata = number_at(m, 17, 8);
    if (tensors > ENTRIES || metadata > ENTRIES || tensors + metadata > ENTRIES || tensors + metadata == 0)
        return false;
    m->bad = false;
    m->entries = (int)(tensors + metadata);
    m->metadata = (int)metadata;
    m->starts[0] = HEADER;
    for (int i = 0; i < m->entries; i++) m->starts[i + 1] = read_entry(m, m->starts[i], i >= m->metadata);
    return !m->bad;
}

/* Makes `size` bytes at `at` to `wanted` bytes; what is new is not yet set. */
static bool resize_at(Mutation *m, size_t at, size_t size, size_t wanted) {
    if (m->size - size + wanted > m->limit) return false;
    memmove(m->data + at + wanted, m->data + at + size, m->size - at - size);
    m->size = m->size - size + wanted;
    return true;
}

/* Another number instead of `value`: a neighbour, an edge, a power of two or anything. */
static uint64_t other_number(Mutation *m, uint64_t value) {
    static const uint64_t edges[] = {0,          1,          2,          3,         4,          8,
                                     16,         31,         32,         33,        64,         255,
                                     256,        4096,       65535,      65536,     INT32_MAX,  0x80000000u,
                                     UINT32_MAX, 1ull << 32, 1ull << 40, INT64_MAX, 1ull << 63, UINT64_MAX};
    switch (next_random(m, 7)) {
    case 0: return value + 1 + next_random(m, 3);
    case 1: return value - 1 - next_random(m, 3);
    case 2: return value ^ 1ull << next_random(m, 64);
    case 3: return next_random(m, 2) ? value * 2 : value / 2;
    case 4: return value + 64 * (uint64_t)(next_random(m, 64) - 32);
    case 5: return edges[next_random(m, sizeof edges / sizeof *edges)];
    default: return next_random(m, 64);
    }
}

static const Field *random_field(Mutation *m) { return &m->fields[next_random(m, (uint32_t)m->field_count)]; }

/* Other text, with its length. */
static void change_string(Mutation *m, const Field *field) {
    uint8_t text[512];
    const size_t length = (size_t)number_at(m, field->at, 8), place = field->at + 8;
    if (length + 16 > sizeof text) return;
    memcpy(text, m->data + place, length);
    const size_t changed = LLVMFuzzerMutate(text, length, length + 16);
    if (!resize_at(m, place, length, changed)) return;
    memcpy(m->data + place, text, changed);
    put_number(m, field->at, 8, changed);
}

/* Removes an element of an array or puts another one in, with the count. */
static void change_array(Mutation *m) {
    int count = 0;
    while (count < m->field_count && m->fields[count].kind != COUNT) count++;
    if (count + 2 >= m->field_count) return;
    const Field *field = &m->fields[count],
                *element = field + 1 + next_random(m, (uint32_t)(m->field_count - count - 1));
    const size_t bytes = (size_t)element->size + (element->kind == STRING ? (size_t)number_at(m, element->at, 8) : 0);
    const bool removes = next_random(m, 2);
    if (!resize_at(m, element->at, removes ? bytes : 0, removes ? 0 : bytes)) return;
    if (!removes) memcpy(m->data + element->at, m->data + element->at + bytes, bytes);
    put_number(m, field->at, field->size, number_at(m, field->at, field->size) + (removes ? (uint64_t)-1 : 1));
}

/* Removes entry i, or puts a copy of it at another place of its table. */
static void change_entries(Mutation *m, int i) {
    const bool tensor = i >= m->metadata, removes = next_random(m, 2);
    const size_t from = m->starts[i], bytes = m->starts[i + 1] - from, count_at = tensor ? 9 : 17;
    const int first = tensor ? m->metadata : 0, last = tensor ? m->entries : m->metadata;
    const size_t to = m->starts[first + (int)next_random(m, (uint32_t)(last - first))];
    if (!resize_at(m, removes ? from : to, removes ? bytes : 0, removes ? 0 : bytes)) return;
    if (!removes) memmove(m->data + to, m->data + (to <= from ? from + bytes : from), bytes);
    put_number(m, count_at, 8, number_at(m, count_at, 8) + (removes ? (uint64_t)-1 : 1));
}

/* Another type for all matrices of one type, or for some of them. */
static void change_types(Mutation *m) {
    static const uint32_t types[] = {TYPE_F32, TYPE_F16, TYPE_BF16, TYPE_Q8_0, TYPE_Q4_0, 3};
    const uint32_t old = types[next_random(m, 5)], type = types[next_random(m, sizeof types / sizeof *types)];
    const uint32_t one_of = next_random(m, 2) ? 1 : 16;
    for (int i = m->metadata; i < m->entries; i++) {
        read_entry(m, m->starts[i], true);
        const size_t at = m->fields[m->field_count - 2].at;
        if (m->field_count > 5 && number_at(m, at, 4) == old && next_random(m, one_of) == 0) put_number(m, at, 4, type);
    }
}

/* One size becomes another in all tensors and in the metadata; sometimes its multiples too. */
static void change_size(Mutation *m) {
    const int i = m->metadata + (int)next_random(m, (uint32_t)(m->entries - m->metadata));
    if (i >= m->entries) return;
    read_entry(m, m->starts[i], true);
    const Field *chosen = random_field(m);
    const uint64_t old = number_at(m, chosen->at, chosen->size), multiples = next_random(m, 2) ? 3 : 1;
    const uint64_t wanted = next_random(m, 2) ? 1 + next_random(m, 70) : other_number(m, old);
    if (chosen->kind != DIMENSION || old == 0) return;
    for (int k = 0; k < m->entries; k++) {
        read_entry(m, m->starts[k], k >= m->metadata);
        for (int f = 0; f < m->field_count; f++) {
            const Field *field = &m->fields[f];
            const uint64_t value = number_at(m, field->at, field->size);
            const bool is_size =
                field->kind == DIMENSION || (field->kind == NUMBER && field->size == 4 && m->field_count < 8);
            if (is_size && value % old == 0 && value / old >= 1 && value / old <= multiples)
                put_number(m, field->at, field->size, value / old * wanted);
        }
    }
}

/* A number of one entry stands in another one too. */
static void copy_number(Mutation *m, const Field *field) {
    const Field to = *field;
    read_entry(m, m->starts[next_random(m, (uint32_t)m->metadata)], false);
    const Field *from = &m->fields[m->field_count - 1];
    if (from->kind == NUMBER && to.kind != STRING && to.kind != KIND)
        put_number(m, to.at, to.size, number_at(m, from->at, from->size));
}

static size_t mutate_model(uint8_t *data, size_t size, size_t limit, unsigned random_seed) {
    static Mutation mutation;
    Mutation *m = &mutation;
    m->data = data;
    m->size = size;
    m->limit = limit;
    m->random = random_seed;
    if (!read_entries(m) || next_random(m, 16) == 0) return LLVMFuzzerMutate(data, size, limit);
    const int entry = (int)next_random(m, (uint32_t)(next_random(m, 2) || m->metadata == 0 ? m->entries : m->metadata));
    read_entry(m, m->starts[entry], entry >= m->metadata);
    const Field *field = random_field(m);
    switch (next_random(m, 10)) {
    case 0: m->data[0] = (uint8_t)next_random(m, 256); break;
    case 1: change_array(m); break;
    case 2: change_entries(m, entry); break;
    case 3: change_types(m); break;
    case 4: change_size(m); break;
    case 5: if (m->metadata > 0) copy_number(m, field); break;
    default:
        if (field->kind == STRING && next_random(m, 4) != 0) change_string(m, field);
        else put_number(m, field->at, field->size, other_number(m, number_at(m, field->at, field->size)));
    }
    return m->size;
}
