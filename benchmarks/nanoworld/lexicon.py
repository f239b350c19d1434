"""The words of the world: slot values in six languages, each table `name -> language -> words`.

Spanish and German nouns carry their article where a sentence needs one ("la luz", "in der Küche"); `bare_noun`
removes it.
"""

LANGUAGE_ORDER = ("en", "zh", "vi", "id", "es", "de")


def table(rows: str) -> dict[str, dict[str, str]]:
    """One entry per line: `name: en / zh / vi / id / es / de`."""
    entries = {}
    for row in rows.strip().splitlines():
        name, _, words = row.strip().partition(": ")
        entries[name] = dict(zip(LANGUAGE_ORDER, (word.strip() for word in words.split("/")), strict=True))
    return entries


ARTICLES = {
    "es": ("el ", "la "),
    "de": ("der ", "die ", "das ", "den ", "in der ", "im "),
}


def bare_noun(language: str, phrase: str) -> str:
    """The phrase without its leading article or preposition: "in der Küche" -> "Küche"."""
    for article in sorted(ARTICLES.get(language, ()), key=len, reverse=True):
        if phrase.startswith(article):
            return phrase[len(article) :]
    return phrase


ROOMS = table("""
kitchen: kitchen / 厨房 / nhà bếp / dapur / la cocina / in der Küche
bedroom: bedroom / 卧室 / phòng ngủ / kamar tidur / el dormitorio / im Schlafzimmer
bathroom: bathroom / 浴室 / phòng tắm / kamar mandi / el baño / im Badezimmer
living_room: living room / 客厅 / phòng khách / ruang tamu / la sala / im Wohnzimmer
garage: garage / 车库 / nhà xe / garasi / el garaje / in der Garage
garden: garden / 花园 / khu vườn / kebun / el jardín / im Garten
office: office / 办公室 / văn phòng / kantor / la oficina / im Büro
hall: hall / 走廊 / hành lang / lorong / el pasillo / im Flur
""")

DEVICES = table("""
light: light / 灯 / đèn / lampu / la luz / das Licht
fan: fan / 风扇 / quạt / kipas / el ventilador / den Ventilator
heater: heater / 暖气 / lò sưởi / pemanas / la calefacción / die Heizung
television: television / 电视 / tivi / televisi / el televisor / den Fernseher
radio: radio / 收音机 / đài / radio / la radio / das Radio
computer: computer / 电脑 / máy tính / komputer / el ordenador / den Computer
""")

OPENABLES = table("""
door: door / 门 / cửa chính / pintu / la puerta / die Tür
window: window / 窗户 / cửa sổ / jendela / la ventana / das Fenster
curtain: curtain / 窗帘 / rèm / tirai / la cortina / den Vorhang
""")

COLOURS = table("""
red: red / 红色 / đỏ / merah / rojo / rot
green: green / 绿色 / xanh lá / hijau / verde / grün
blue: blue / 蓝色 / xanh dương / biru / azul / blau
yellow: yellow / 黄色 / vàng / kuning / amarillo / gelb
white: white / 白色 / trắng / putih / blanco / weiß
purple: purple / 紫色 / tím / ungu / morado / lila
orange: orange / 橙色 / cam / oranye / naranja / orange
""")

UNITS = table("""
seconds: seconds / 秒钟 / giây / detik / segundos / Sekunden
minutes: minutes / 分钟 / phút / menit / minutos / Minuten
hours: hours / 小时 / tiếng / jam / horas / Stunden
""")

DAYS = table("""
monday: on Monday / 星期一 / vào thứ hai / hari Senin / el lunes / am Montag
tuesday: on Tuesday / 星期二 / vào thứ ba / hari Selasa / el martes / am Dienstag
wednesday: on Wednesday / 星期三 / vào thứ tư / hari Rabu / el miércoles / am Mittwoch
thursday: on Thursday / 星期四 / vào thứ năm / hari Kamis / el jueves / am Donnerstag
friday: on Friday / 星期五 / vào thứ sáu / hari Jumat / el viernes / am Freitag
saturday: on Saturday / 星期六 / vào thứ bảy / hari Sabtu / el sábado / am Samstag
sunday: on Sunday / 星期天 / vào chủ nhật / hari Minggu / el domingo / am Sonntag
today: today / 今天 / hôm nay / hari ini / hoy / heute
tomorrow: tomorrow / 明天 / ngày mai / besok / mañana / morgen
""")

CITIES = table("""
paris: Paris / 巴黎 / Paris / Paris / París / Paris
london: London / 伦敦 / Luân Đôn / London / Londres / London
berlin: Berlin / 柏林 / Berlin / Berlin / Berlín / Berlin
madrid: Madrid / 马德里 / Madrid / Madrid / Madrid / Madrid
tokyo: Tokyo / 东京 / Tokyo / Tokyo / Tokio / Tokio
beijing: Beijing / 北京 / Bắc Kinh / Beijing / Pekín / Peking
hanoi: Hanoi / 河内 / Hà Nội / Hanoi / Hanói / Hanoi
jakarta: Jakarta / 雅加达 / Jakarta / Jakarta / Yakarta / Jakarta
rome: Rome / 罗马 / Roma / Roma / Roma / Rom
""")

PLACES = table("""
station: station / 车站 / nhà ga / stasiun / la estación / der Bahnhof
museum: museum / 博物馆 / bảo tàng / museum / el museo / das Museum
market: market / 市场 / chợ / pasar / el mercado / der Markt
hospital: hospital / 医院 / bệnh viện / rumah sakit / el hospital / das Krankenhaus
school: school / 学校 / trường học / sekolah / la escuela / die Schule
hotel: hotel / 酒店 / khách sạn / hotel / el hotel / das Hotel
park: park / 公园 / công viên / taman / el parque / der Park
airport: airport / 机场 / sân bay / bandara / el aeropuerto / der Flughafen
library: library / 图书馆 / thư viện / perpustakaan / la biblioteca / die Bibliothek
""")

ITEMS = table("""
apples: apples / 个苹果 / quả táo / apel / manzanas / Äpfel
eggs: eggs / 个鸡蛋 / quả trứng / telur / huevos / Eier
bananas: bananas / 根香蕉 / quả chuối / pisang / plátanos / Bananen
lemons: lemons / 个柠檬 / quả chanh / lemon / limones / Zitronen
tomatoes: tomatoes / 个西红柿 / quả cà chua / tomat / tomates / Tomaten
books: books / 本书 / quyển sách / buku / libros / Bücher
bottles: bottles / 个瓶子 / cái chai / botol / botellas / Flaschen
cups: cups / 个杯子 / cái cốc / gelas / vasos / Becher
""")

OBJECTS = table("""
key: key / 钥匙 / chìa khóa / kunci / la llave / der Schlüssel
phone: phone / 手机 / điện thoại / ponsel / el teléfono / das Telefon
bag: bag / 背包 / túi / tas / el bolso / die Tasche
umbrella: umbrella / 雨伞 / ô / payung / el paraguas / der Regenschirm
wallet: wallet / 钱包 / ví / dompet / la cartera / die Geldbörse
jacket: jacket / 外套 / áo khoác / jaket / la chaqueta / die Jacke
hat: hat / 帽子 / mũ / topi / el sombrero / der Hut
ball: ball / 球 / bóng / bola / la pelota / der Ball
camera: camera / 相机 / máy ảnh / kamera / la cámara / die Kamera
watch: watch / 手表 / đồng hồ / arloji / el reloj / die Uhr
""")

GENRES = table("""
jazz: jazz / 爵士乐 / nhạc jazz / musik jazz / música jazz / Jazz
rock: rock / 摇滚乐 / nhạc rock / musik rock / música rock / Rock
pop: pop / 流行乐 / nhạc pop / musik pop / música pop / Pop
classical: classical music / 古典音乐 / nhạc cổ điển / musik klasik / música clásica / klassische Musik
""")

WEATHER = table("""
sunny: sunny / 晴天 / nắng / cerah / soleado / sonnig
rainy: rainy / 下雨 / mưa / hujan / lluvioso / regnerisch
cloudy: cloudy / 多云 / nhiều mây / berawan / nublado / bewölkt
windy: windy / 刮风 / gió / berangin / ventoso / windig
snowy: snowy / 下雪 / tuyết / bersalju / nevado / verschneit
""")

LANGUAGE_NAMES = table("""
en: English / 英语 / tiếng Anh / bahasa Inggris / inglés / Englisch
zh: Chinese / 中文 / tiếng Trung / bahasa Mandarin / chino / Chinesisch
vi: Vietnamese / 越南语 / tiếng Việt / bahasa Vietnam / vietnamita / Vietnamesisch
id: Indonesian / 印尼语 / tiếng Indonesia / bahasa Indonesia / indonesio / Indonesisch
es: Spanish / 西班牙语 / tiếng Tây Ban Nha / bahasa Spanyol / español / Spanisch
de: German / 德语 / tiếng Đức / bahasa Jerman / alemán / Deutsch
""")

TO_TWENTY = {
    "en": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty",
    "zh": "零 一 二 三 四 五 六 七 八 九 十 十一 十二 十三 十四 十五 十六 十七 十八 十九 二十",
    "vi": "không,một,hai,ba,bốn,năm,sáu,bảy,tám,chín,mười,mười một,mười hai,mười ba,mười bốn,mười lăm,mười sáu,"
    "mười bảy,mười tám,mười chín,hai mươi",
    "id": "nol,satu,dua,tiga,empat,lima,enam,tujuh,delapan,sembilan,sepuluh,sebelas,dua belas,tiga belas,empat belas,"
    "lima belas,enam belas,tujuh belas,delapan belas,sembilan belas,dua puluh",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis "
    "diecisiete dieciocho diecinueve veinte",
    "de": "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
    "siebzehn achtzehn neunzehn zwanzig",
}
TENS = {
    "en": "thirty forty fifty sixty seventy eighty ninety",
    "zh": "三十 四十 五十 六十 七十 八十 九十",
    "vi": "ba mươi,bốn mươi,năm mươi,sáu mươi,bảy mươi,tám mươi,chín mươi",
    "id": "tiga puluh,empat puluh,lima puluh,enam puluh,tujuh puluh,delapan puluh,sembilan puluh",
    "es": "treinta cuarenta cincuenta sesenta setenta ochenta noventa",
    "de": "dreißig vierzig fünfzig sechzig siebzig achtzig neunzig",
}


def number_words(language: str) -> dict[int, str]:
    """The numbers of the world, 0..20 and the tens to 90, as words."""
    separator = "," if language in ("vi", "id") else " "
    words = dict(enumerate(TO_TWENTY[language].split(separator)))
    return words | {10 * ten: word for ten, word in enumerate(TENS[language].split(separator), start=3)}


NUMBERS = {language: number_words(language) for language in LANGUAGE_ORDER}
